// SPDX-License-Identifier: Apache-2.0
// The Python face of the machine's limits; tests and bench/ use it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/memory.h"
#include "executor/threads.h"
#include "kernels/isa.h"
#include "limits.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace linnet;

void bind_limits(nb::module_& module);

namespace {

const LimitKernels& limits_of(const std::string& isa) {
    const std::string tier = kernel_table(isa).isa;
    LINNET_TIERS(LINNET_RETURN_TABLE, tier, limit_kernels)
    throw std::logic_error("a tier without limits: " + tier);
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Probes on all threads of a pool; numbers are for the whole pool.
class LimitProbe {
  public:
    LimitProbe(const std::string& isa, std::shared_ptr<ThreadPool> pool, int64_t bytes)
        : kernels_(limits_of(isa)), pool_(std::move(pool)), bytes_(bytes / PIECE * PIECE), area_(bytes_) {
        if (bytes_ < PIECE) throw std::invalid_argument("limits: the read area must be at least 1 MiB");
        for (int64_t i = 0; i < bytes_; i += 8) *reinterpret_cast<int64_t*>(area_.data() + i) = i;
    }
    LimitProbe(const LimitProbe&) = delete;
    LimitProbe& operator=(const LimitProbe&) = delete;
    double read_bandwidth(int streams) {  // bytes per second
        if (streams != 1 && streams != 4) throw std::invalid_argument("limits: accepted are 1 and 4 streams");
        const auto read = streams == 1 ? kernels_.read : kernels_.read_four;
        const double start = now();
        std::vector<int64_t> sums(size_t(bytes_ / PIECE));
        pool_->run(bytes_ / PIECE, [&](int64_t item, int) {
            sums[size_t(item)] = read(reinterpret_cast<uint8_t*>(area_.data()) + item * PIECE, PIECE);
        });
        for (const int64_t sum : sums) kept_ = kept_ + sum;
        return double(bytes_) / (now() - start);
    }
    double multiply(int64_t (*kernel)(int64_t), double seconds) {  // multiply-adds per second
        const int64_t items = 8 * pool_->threads();
        int64_t iterations = 1000;
        for (;;) {
            std::vector<int64_t> done(static_cast<size_t>(items));
            const double start = now();
            pool_->run(items, [&](int64_t item, int) { done[size_t(item)] = kernel(iterations); });
            const double spent = now() - start;
            int64_t total = 0;
            for (const int64_t part : done) total += part;
            if (total == 0) return 0.0;
            if (spent >= seconds) return double(total) / spent;
            iterations = int64_t(double(iterations) * (spent < seconds / 8 ? 4.0 : 1.2 * seconds / spent));
        }
    }
    const LimitKernels& kernels() const { return kernels_; }

  private:
    static constexpr int64_t PIECE = 1 << 20;
    const LimitKernels& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    int64_t bytes_;
    Buffer area_;
    volatile int64_t kept_ = 0;
};

}  // namespace

void bind_limits(nb::module_& module) {
    nb::class_<LimitProbe>(module, "Limits", "Probes of the machine on every thread of a pool.")
        .def(nb::init<const std::string&, std::shared_ptr<ThreadPool>, int64_t>(), "isa"_a, "pool"_a, "bytes"_a)
        .def("read_bandwidth", &LimitProbe::read_bandwidth, "streams"_a,
             "Bytes per second over the whole area, read once, in 1 or 4 streams per thread.",
             nb::call_guard<nb::gil_scoped_release>())
        .def(
            "int8", [](LimitProbe& l, double s) { return l.multiply(l.kernels().multiply_int8, s); }, "seconds"_a,
            "int8 multiply-adds per second.", nb::call_guard<nb::gil_scoped_release>())
        .def(
            "bf16", [](LimitProbe& l, double s) { return l.multiply(l.kernels().multiply_bf16, s); }, "seconds"_a,
            "bf16 multiply-adds per second; 0 where the tier has no instruction.",
            nb::call_guard<nb::gil_scoped_release>())
        .def(
            "fp32", [](LimitProbe& l, double s) { return l.multiply(l.kernels().multiply_fp32, s); }, "seconds"_a,
            "fp32 multiply-adds per second.", nb::call_guard<nb::gil_scoped_release>());
}
