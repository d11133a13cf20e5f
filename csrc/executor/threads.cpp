// SPDX-License-Identifier: Apache-2.0
#include "threads.h"

#include <sched.h>

#include <chrono>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace linnet {

namespace {

constexpr uint32_t DEFAULT_MXCSR = 0x1f80;
// Long enough to bridge the gap between two ops of a step, short enough not to starve a neighbour on a busy machine.
constexpr auto SPIN_TIME = std::chrono::microseconds(40);

using Clock = std::chrono::steady_clock;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

// Spins until done() or the spin time is over; returns done().
template <typename Done>
bool spin(const Done& done) {
    const auto deadline = std::chrono::steady_clock::now() + SPIN_TIME;
    do {
        for (int i = 0; i < 32; ++i) {
            if (done()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return done();
}

// How a worker shares its core on a busy machine. Where nobody else computes all of it costs two looks at the clock.
//
// A worker that has held its core for TURN offers it to whoever waits for it, between two items: it would lose the core
// soon anyway, most likely inside an item, and everybody would wait for that item until it is back. (Linux lets a
// thread run for 1.4 ms or more and looks every 1 to 4 ms.) Where nobody waits the offer costs a third of a
// microsecond.
//
// A worker on the caller's core only takes turns with it, which wins nothing and delays every job: it asks for another
// core, any other that is allowed. The set of allowed cores is the same afterwards.
class SharedCore {
  public:
    void begin_job(int caller_core) {
        const Clock::time_point now = Clock::now();
        if (sched_getcpu() == caller_core && now - left_ > PATIENCE) {
            left_ = now;
            leave(caller_core);
        }
        offer(now);
    }

    void between_items() { offer(Clock::now()); }

  private:
    static constexpr auto TURN = std::chrono::microseconds(2000);
    static constexpr auto AWAY = std::chrono::microseconds(1000);     // longer than an item: the core was taken away
    static constexpr auto PATIENCE = std::chrono::microseconds(500);  // where there are more threads than cores

    void offer(Clock::time_point now) {
        if (now - seen_ > AWAY) {
            began_ = now;
        } else if (now - began_ > TURN) {
            sched_yield();
            began_ = now = Clock::now();
        }
        seen_ = now;
    }

    static void leave(int core) {
        cpu_set_t allowed;
        if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
        cpu_set_t others = allowed;
        CPU_CLR(size_t(core), &others);
        if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
        sched_setaffinity(0, sizeof allowed, &allowed);
    }

    Clock::time_point began_ = Clock::now(), seen_ = began_, left_ = began_;
};

std::string read_line(const std::string& path) {
    std::string line;
    if (FILE* file = std::fopen(path.c_str(), "r")) {
        char buffer[256];
        if (std::fgets(buffer, sizeof buffer, file)) line = buffer;
        std::fclose(file);
    }
    return line;
}

}  // namespace

#if defined(__x86_64__)
FloatingPointGuard::FloatingPointGuard() : saved_(_mm_getcsr()) { _mm_setcsr(DEFAULT_MXCSR); }
FloatingPointGuard::~FloatingPointGuard() { _mm_setcsr(saved_); }
#else
FloatingPointGuard::FloatingPointGuard() : saved_(0) {}
FloatingPointGuard::~FloatingPointGuard() {}
#endif

ThreadPool::ThreadPool(int threads) : runs_(size_t(threads > 0 ? threads : 0)) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1, not " + std::to_string(threads));
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
}

ThreadPool::~ThreadPool() {
    stop_.store(true);
    job_.fetch_add(1);
    job_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

template <typename Between>
void ThreadPool::take_items(int worker, const Between& between) {
    const size_t workers = runs_.size();
    for (size_t distance = 0; distance < workers; ++distance) {
        std::atomic<uint64_t>& run = runs_[(size_t(worker) + distance) % workers].packed;
        uint64_t seen = run.load(std::memory_order_acquire);
        for (;;) {
            const uint64_t first = seen >> Run::BITS & Run::MASK, end = seen & Run::MASK;
            if (first == end) break;
            // Its own run from the front, another's from the back, so that its owner goes on in order.
            const uint64_t left = distance == 0 ? seen + Run::MOST : seen - 1;
            if (!run.compare_exchange_weak(seen, left, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
            function_(context_, int64_t(distance == 0 ? first : end - 1), worker);
            // Reported one by one: work taken for the next job must not be counted for this one.
            if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_all();
            between();
            seen = run.load(std::memory_order_acquire);
        }
    }
}

void ThreadPool::work(int worker) {
    FloatingPointGuard guard;
    uint32_t seen = 0;
    SharedCore core;
    for (;;) {
        if (!spin([&] { return job_.load(std::memory_order_acquire) != seen; })) {
            sleepers_.fetch_add(1);
            while (job_.load() == seen) job_.wait(seen);
            sleepers_.fetch_sub(1);
        }
        if (stop_.load()) return;
        seen = job_.load(std::memory_order_acquire);
        core.begin_job(caller_core_.load(std::memory_order_relaxed));
        take_items(worker, [&] { core.between_items(); });
    }
}

void ThreadPool::run_erased(int64_t items, Function function, const void* context) {
    if (items <= 0) return;
    if (items == 1 || workers_.empty()) {
        for (int64_t item = 0; item < items; ++item) function(context, item, 0);
        return;
    }
    std::lock_guard<std::mutex> lock(one_caller_);
    constexpr int64_t most = int64_t(Run::MASK);
    if (items <= most) return run_some(items, function, context);
    struct Part {
        Function function;
        const void* context;
        int64_t first;
    };
    for (int64_t first = 0; first < items; first += most) {
        const Part part = {function, context, first};
        run_some(
            items - first < most ? items - first : most,
            [](const void* of, int64_t item, int worker) {
                const Part& whole = *static_cast<const Part*>(of);
                whole.function(whole.context, whole.first + item, worker);
            },
            &part);
    }
}

void ThreadPool::run_some(int64_t items, Function function, const void* context) {
    function_ = function;
    context_ = context;
    pending_.store(items, std::memory_order_relaxed);
    caller_core_.store(sched_getcpu(), std::memory_order_relaxed);
    ++number_;
    const int64_t workers = threads();
    for (int64_t worker = 0; worker < workers; ++worker) {
        const uint64_t first = uint64_t(items * worker / workers), end = uint64_t(items * (worker + 1) / workers);
        runs_[size_t(worker)].packed.store(Run::pack(number_, first, end), std::memory_order_release);
    }
    job_.fetch_add(1);
    if (sleepers_.load() > 0) job_.notify_all();
    take_items(0, [] {});
    const auto finished = [&] { return pending_.load(std::memory_order_acquire) == 0; };
    if (!spin(finished)) {
        for (int64_t left = pending_.load(std::memory_order_acquire); left != 0;
             left = pending_.load(std::memory_order_acquire)) {
            pending_.wait(left, std::memory_order_acquire);
        }
    }
}

int ThreadPool::default_threads() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        const std::string siblings = read_line(base + "thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return cores.empty() ? 1 : int(cores.size());
}

}  // namespace linnet
