// SPDX-License-Identifier: Apache-2.0
// The linear kernels without an executor, for tests and bench/.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/memory.h"
#include "executor/threads.h"
#include "kernels/isa.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace linnet;

void bind_linear_run(nb::module_& module);

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A linear op as the executor runs it: the input is quantised or cast once, outputs are split over the pool.
class LinearRun {
  public:
    LinearRun(const std::string& isa, std::shared_ptr<ThreadPool> pool, const LinearWeight& weight, InputType input,
              int64_t group_size, const Matrix& x, bool tiles)
        : kernels_(*kernel_table(isa).linear),
          pool_(std::move(pool)),
          weight_(weight),
          input_(input),
          rows_(int64_t(x.shape(0))) {
        if (int64_t(x.shape(1)) != weight.columns)
            throw std::invalid_argument("linear: x and weight differ in columns");
        if (group_size < 1 || group_size > weight.columns) group_size = weight.columns;
        if (const char* reason = kernels_.refuse(weight, input, group_size))
            throw std::invalid_argument(std::string("linear: ") + reason);
        const int64_t columns = weight.columns;
        if (input == InputType::fp32) {
            floats_.assign(x.data(), x.data() + rows_ * columns);
        } else if (input == InputType::bf16) {
            halves_.resize(size_t(rows_ * columns));
            kernels_.cast_bf16(x.data(), halves_.data(), rows_ * columns);
        } else {
            quantised_.row_bytes = kernels_.quantised_row_bytes(columns, group_size);
            quantised_.columns = columns;
            quantised_.groups = (columns + group_size - 1) / group_size;
            quantised_.group_size = group_size;
            codes_ = Buffer(rows_ * quantised_.row_bytes);
            scales_.resize(size_t(rows_ * quantised_.groups));
            sums_.resize(scales_.size());
            quantised_.codes = reinterpret_cast<int8_t*>(codes_.data());
            quantised_.scales = scales_.data();
            quantised_.sums = sums_.data();
            kernels_.quantise_rows(x.data(), columns, quantised_, 0, rows_);
        }
        if (!weight.readable()) throw std::invalid_argument("linear: a weight that is read as tiles has none");
        if (tiles && !weight.spread && input == InputType::int8 && kernels_.tile_bytes(weight) > 0) {
            tiles_ = Buffer(kernels_.tile_bytes(weight));
            kernels_.make_tiles(weight, tiles_.data(), 0, weight.rows);
            weight_.tiles = tiles_.data();
        }
        for (int i = 0; i < pool_->threads(); ++i) scratch_.emplace_back(kernels_.scratch_bytes(weight, input, rows_));
    }
    LinearRun(const LinearRun&) = delete;
    LinearRun& operator=(const LinearRun&) = delete;
    // y[first row + r] for rows [first_row, first_row + rows); items of `units` column units each.
    void run(const Output& y, int64_t first_row, int64_t rows, int64_t units) {
        if (first_row < 0 || rows < 1 || first_row + rows > rows_ || units < 1 || int64_t(y.shape(0)) != rows ||
            int64_t(y.shape(1)) != weight_.rows)
            throw std::invalid_argument("linear: y must be [rows, outputs] for rows inside x");
        float* out = y.data();
        nb::gil_scoped_release release;
        const int64_t width = units * kernels_.column_unit(weight_, input_);
        pool_->run((weight_.rows + width - 1) / width, [&](int64_t item, int worker) {
            const FloatingPointGuard guard;
            const int64_t begin = item * width;
            const int64_t end = begin + width < weight_.rows ? begin + width : weight_.rows;
            part(out, first_row, rows, begin, end, scratch_[size_t(worker)].data());
        });
    }

  private:
    void part(float* y, int64_t first_row, int64_t rows, int64_t begin, int64_t end, void* scratch) const {
        const int64_t columns = weight_.columns, ldy = weight_.rows;
        if (input_ == InputType::fp32) {
            kernels_.linear_fp32(weight_, floats_.data() + first_row * columns, columns, y, ldy, rows, begin, end,
                                 scratch);
        } else if (input_ == InputType::bf16) {
            kernels_.linear_bf16(weight_, halves_.data() + first_row * columns, columns, y, ldy, rows, begin, end,
                                 scratch);
        } else {
            QuantisedRows x = quantised_;
            x.codes += first_row * x.row_bytes;
            x.scales += first_row * x.groups;
            x.sums += first_row * x.groups;
            kernels_.linear_int8(weight_, x, y, ldy, rows, begin, end, scratch);
        }
    }

    const LinearKernels& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    LinearWeight weight_;
    InputType input_;
    int64_t rows_;
    std::vector<float> floats_;
    std::vector<uint16_t> halves_;
    Buffer codes_, tiles_;
    std::vector<float> scales_;
    std::vector<int32_t> sums_;
    QuantisedRows quantised_;
    std::vector<Buffer> scratch_;
};

}  // namespace

void bind_linear_run(nb::module_& module) {
    nb::class_<LinearRun>(
        module, "LinearRun",
        "One linear op with its input prepared, and its weight as tiles if asked; its arrays must outlive it.")
        .def(nb::init<const std::string&, std::shared_ptr<ThreadPool>, const LinearWeight&, InputType, int64_t,
                      const Matrix&, bool>(),
             "isa"_a, "pool"_a, "weight"_a, "input"_a, "group_size"_a, "x"_a.noconvert(), "tiles"_a = false)
        .def("run", &LinearRun::run, "y"_a.noconvert(), "first_row"_a, "rows"_a, "units"_a);
}
