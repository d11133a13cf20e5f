// SPDX-License-Identifier: Apache-2.0
// One persistent pool of threads. The caller takes part. Every worker begins with its own run of neighbouring items, so
// that it reads memory in address order, and takes them one at a time; then it takes the last ones of others, so a core
// that is busy elsewhere does fewer. Nobody waits for a worker that has not taken an item: a descheduled thread costs
// nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace linnet {

// Sets MXCSR to its default (round to nearest, no flush-to-zero, no denormals-are-zero) and restores it.
class FloatingPointGuard {
  public:
    FloatingPointGuard();
    ~FloatingPointGuard();
    FloatingPointGuard(const FloatingPointGuard&) = delete;
    FloatingPointGuard& operator=(const FloatingPointGuard&) = delete;

  private:
    uint32_t saved_;
};

class ThreadPool {
  public:
    using Function = void (*)(const void* context, int64_t item, int worker);

    // threads >= 1, the caller included; 1 means that run() is a plain loop.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return int(workers_.size()) + 1; }

    // Calls body(item, worker) for item in [0, items), worker in [0, threads()); returns when all are done.
    // body must not throw and must not call run(). Calls from several threads take turns.
    template <typename Body>
    void run(int64_t items, const Body& body) {
        run_erased(
            items,
            [](const void* context, int64_t item, int worker) { (*static_cast<const Body*>(context))(item, worker); },
            &body);
    }

    // Physical cores this process may run on (affinity mask; siblings of one core count once).
    static int default_threads();

  private:
    void run_erased(int64_t items, Function function, const void* context);
    void work(int worker);
    template <typename Between>
    void take_items(int worker, const Between& between);

    // Items a worker has not yet begun: job number, first, end. Taking an item is one compare-exchange on it; a success
    // proves that the job cannot end before the item is reported done, so reading the two fields below is safe.
    struct alignas(64) Run {
        static constexpr int BITS = 20;
        static constexpr uint64_t MOST = uint64_t(1) << BITS, MASK = MOST - 1;
        static uint64_t pack(uint64_t job, uint64_t first, uint64_t end) {
            return job << (2 * BITS) | first << BITS | end;
        }
        std::atomic<uint64_t> packed{0};
    };
    void run_some(int64_t items, Function function, const void* context);

    std::vector<Run> runs_;
    uint64_t number_ = 0;                          // of the job, in the bits a Run has left
    alignas(64) std::atomic<int64_t> pending_{0};  // items not yet done
    alignas(64) std::atomic<uint32_t> job_{0};     // what sleeping workers wait on
    std::atomic<int32_t> sleepers_{0};
    std::atomic<int32_t> caller_core_{-1};
    std::atomic<bool> stop_{false};
    Function function_ = nullptr;
    const void* context_ = nullptr;
    std::mutex one_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace linnet
