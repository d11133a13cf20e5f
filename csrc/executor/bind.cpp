// SPDX-License-Identifier: Apache-2.0
// The Python face of the executor: one typed method per op kind. Arrays come as flat bytes (numpy has no bf16 of its
// own), their sizes are checked here, and the Python side keeps them alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <stdexcept>

#include "kernels/isa.h"
#include "low_rank.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace linnet;

void bind_sampling(nb::module_& module);
void bind_linear_run(nb::module_& module);
void bind_limits(nb::module_& module);

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table8 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Slots = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void require_size(const char* what, int64_t found, int64_t needed) {
    if (found >= needed) return;
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) + " elements, " +
                                std::to_string(needed) + " are needed");
}

const float* floats(const char* what, const std::optional<Floats>& array, int64_t size) {
    if (!array) return nullptr;
    require_size(what, int64_t(array->size()), size);
    return array->data();
}

LinearWeight make_weight(Storage storage, int32_t bits, int64_t rows, int64_t columns, const Bytes& codes,
                         int64_t code_row_bytes, int64_t group_size, const std::optional<Bytes>& scales,
                         ScaleType scale_type, int64_t scale_row_stride, int64_t scale_group_stride,
                         const std::optional<Bytes>& zero_points, const std::optional<Floats>& bias,
                         const std::optional<Floats>& codebook) {
    if (rows < 1 || columns < 1 || group_size < 1 || code_row_bytes < 1) {
        throw std::invalid_argument("a weight needs rows, columns, group_size and code_row_bytes of at least 1");
    }
    LinearWeight weight;
    weight.storage = storage;
    weight.bits = bits;
    weight.rows = rows;
    weight.columns = columns;
    weight.group_size = group_size;
    weight.code_row_bytes = code_row_bytes;
    require_size("codes", int64_t(codes.size()), rows * code_row_bytes);
    require_size("a row of codes", code_row_bytes * 8, columns * bits);
    weight.codes = codes.data();
    const int64_t groups = (columns + group_size - 1) / group_size;
    if (scales) {
        const int64_t bytes = scale_type == ScaleType::fp32 ? 4 : 2;
        require_size("scales", int64_t(scales->size()),
                     ((rows - 1) * scale_row_stride + (groups - 1) * scale_group_stride + 1) * bytes);
        weight.scales = scales->data();
        weight.scale_type = scale_type;
        weight.scale_row_stride = scale_row_stride;
        weight.scale_group_stride = scale_group_stride;
    } else if (storage != Storage::fp32 && storage != Storage::bf16 && storage != Storage::fp16) {
        throw std::invalid_argument("a quantised weight needs scales");
    }
    if (zero_points) {
        require_size("zero_points", int64_t(zero_points->size()), rows * groups);
        weight.zero_points = reinterpret_cast<const int8_t*>(zero_points->data());
        weight.zero_point_row_stride = groups;
        weight.offsets = Offsets::zero_points;
    }
    weight.bias = floats("bias", bias, rows);
    weight.codebook = floats("codebook", codebook, 16);
    require((weight.codebook != nullptr) == (storage == Storage::codebook),
            "a codebook weight comes with its codebook");
    return weight;
}

NarrowWeight make_narrow(const char* what, const Bytes& panels, bool bf16, int64_t outputs, int64_t columns) {
    require(outputs >= 1 && columns >= 1, "a matrix of a term has rows and columns");
    const int64_t padded = (outputs + NarrowWeight::PANEL - 1) / NarrowWeight::PANEL * NarrowWeight::PANEL;
    require_size(what, int64_t(panels.size()), padded * columns * (bf16 ? 2 : 4));
    return {panels.data(), bf16, outputs, columns};
}

// A weight that is nothing but its tiles, which fill_tiles makes a run of rows at a time.
LinearWeight make_tiled_weight(int32_t bits, int64_t rows, int64_t columns, int64_t group_size,
                               int64_t super_group_size, Offsets offsets, ScaleType scale_type,
                               const std::optional<Floats>& bias, const std::optional<Floats>& codebook,
                               bool row_tables, bool two_of_four) {
    if (rows < 1 || columns < 1 || group_size < 1) {
        throw std::invalid_argument("a weight needs rows, columns and group_size of at least 1");
    }
    require(!row_tables || !codebook, "rows have tables of their own, or all have one");
    if (super_group_size < 0 || super_group_size % group_size != 0) {
        throw std::invalid_argument("a super group is a whole number of groups");
    }
    LinearWeight weight;
    require(bits != 16 || two_of_four, "only 2:4 weights of bf16 are nothing but tiles");
    weight.storage = codebook || row_tables ? Storage::codebook : bits == 16 ? Storage::bf16 : Storage::packed_int;
    weight.spread = true;
    weight.two_of_four = two_of_four;
    weight.bits = bits;
    weight.rows = rows;
    weight.columns = columns;
    weight.group_size = group_size;
    weight.super_group_size = super_group_size;
    weight.offsets = offsets;
    weight.scale_type = scale_type;
    weight.bias = floats("bias", bias, rows);
    weight.codebook = floats("codebook", codebook, 16);
    return weight;
}

int64_t tile_bytes(const std::string& isa, const LinearWeight& weight) {
    return kernel_table(isa).linear->tile_bytes(weight);
}

// Tiles of rows [begin, end), by runs of whole units on every thread.
void make_tiles(const std::string& isa, ThreadPool& pool, const LinearWeight& weight, void* tiles, int64_t begin,
                int64_t end) {
    const LinearKernels& kernels = *kernel_table(isa).linear;
    const int64_t run = 8 * kernels.column_unit(weight, InputType::int8);
    require(begin % run == 0 && begin < end && end <= weight.rows, "tiles are made by runs of whole units of rows");
    pool.run((end - begin + run - 1) / run, [&](int64_t item, int) {
        const int64_t first = begin + item * run, last = first + run;
        kernels.make_tiles(weight, tiles, first, last < end ? last : end);
    });
}

// Rows [first_row, first_row + given) of a tiled weight, in arrays of just those rows. Tables of rows are their scales.
void fill_tiles(const std::string& isa, ThreadPool& pool, LinearWeight weight, const WritableBytes& tiles,
                int64_t first_row, const Table8& codes, const Bytes& scales, const std::optional<Bytes>& offsets,
                const std::optional<Bytes>& scale_codes, const std::optional<Bytes>& minimum_codes) {
    const int64_t given = int64_t(codes.shape(0)),
                  groups = (weight.columns + weight.group_size - 1) / weight.group_size;
    const int64_t super = weight.super_group_size;
    const bool row_tables = weight.storage == Storage::codebook && weight.codebook == nullptr;
    const int64_t scales_of_row = row_tables  ? int64_t(1) << weight.bits
                                  : super > 0 ? (weight.columns + super - 1) / super
                                              : groups;
    const bool scaled = weight.storage != Storage::bf16;
    const int64_t bytes = !scaled ? 0 : weight.scale_type == ScaleType::fp32 ? 4 : 2;
    const int64_t code_row_bytes = weight.columns * (scaled ? 1 : 2);
    require(weight.spread, "only weights that are nothing but tiles are filled");
    require(given > 0 && first_row >= 0 && first_row + given <= weight.rows, "these rows are not the weight's");
    require(int64_t(codes.shape(1)) == code_row_bytes, "codes have other columns than the weight");
    require_size("tiles", int64_t(tiles.size()), tile_bytes(isa, weight));
    require_size("scales", int64_t(scales.size()), given * scales_of_row * bytes);
    const auto array = [&](const char* what, const std::optional<Bytes>& given_array, bool wanted, int64_t size) {
        if (!wanted) return static_cast<const uint8_t*>(nullptr);
        require_size(what, given_array ? int64_t(given_array->size()) : 0, size);
        return given_array->data();
    };
    const bool minimums = weight.offsets == Offsets::minimums, zero_points = weight.offsets == Offsets::zero_points;
    weight.codes = codes.data();
    weight.code_row_bytes = code_row_bytes;
    weight.scales = scaled ? scales.data() : nullptr;
    weight.scale_row_stride = scales_of_row;
    weight.scale_group_stride = 1;
    weight.minimums = array("minimums", offsets, minimums, given * scales_of_row * bytes);
    weight.zero_points = reinterpret_cast<const int8_t*>(array("zero_points", offsets, zero_points, given * groups));
    weight.zero_point_row_stride = groups;
    weight.scale_codes = reinterpret_cast<const int8_t*>(array("scale_codes", scale_codes, super > 0, given * groups));
    weight.minimum_codes =
        reinterpret_cast<const int8_t*>(array("minimum_codes", minimum_codes, super > 0 && minimums, given * groups));
    weight.first_row = first_row;
    nb::gil_scoped_release release;
    make_tiles(isa, pool, weight, tiles.data(), first_row, first_row + given);
}

Batch make_batch(const Integers& token_ids, const Integers& positions, const Slots& kv_slots,
                 const Integers& query_start, const Integers& context_lengths, const Tables& block_tables,
                 const Integers& output_rows) {
    Batch batch;
    batch.tokens = int64_t(token_ids.size());
    batch.sequences = int64_t(context_lengths.size());
    batch.outputs = int64_t(output_rows.size());
    batch.groups = int64_t(block_tables.shape(0));
    batch.blocks = int64_t(block_tables.shape(2));
    const auto same = [](const char* field, size_t found, int64_t expected) {
        if (int64_t(found) == expected) return;
        throw std::invalid_argument(std::string("batch: ") + field + " has " + std::to_string(found) +
                                    " entries, not " + std::to_string(expected));
    };
    same("positions", positions.size(), batch.tokens);
    same("kv_slots", kv_slots.size(), batch.groups * batch.tokens);
    same("query_start", query_start.size(), batch.sequences + 1);
    same("block_tables", block_tables.shape(1), batch.sequences);
    batch.token_ids = token_ids.data();
    batch.positions = positions.data();
    batch.kv_slots = kv_slots.data();
    batch.query_start = query_start.data();
    batch.context_lengths = context_lengths.data();
    batch.block_tables = block_tables.data();
    batch.output_rows = output_rows.data();
    return batch;
}

void bind_enums(nb::module_& m) {
    nb::enum_<Storage>(m, "Storage")
        .value("fp32", Storage::fp32)
        .value("bf16", Storage::bf16)
        .value("fp16", Storage::fp16)
        .value("packed_int", Storage::packed_int)
        .value("plain_int8", Storage::plain_int8)
        .value("fp8_e4m3", Storage::fp8_e4m3)
        .value("codebook", Storage::codebook);
    nb::enum_<ScaleType>(m, "ScaleType")
        .value("fp32", ScaleType::fp32)
        .value("bf16", ScaleType::bf16)
        .value("fp16", ScaleType::fp16);
    nb::enum_<Offsets>(m, "Offsets")
        .value("none", Offsets::none)
        .value("zero_points", Offsets::zero_points)
        .value("minimums", Offsets::minimums);
    nb::enum_<InputType>(m, "InputType")
        .value("fp32", InputType::fp32)
        .value("bf16", InputType::bf16)
        .value("int8", InputType::int8);
    nb::enum_<ValueType>(m, "ValueType")
        .value("fp32", ValueType::fp32)
        .value("bf16", ValueType::bf16)
        .value("fp16", ValueType::fp16)
        .value("int8", ValueType::int8)
        .value("int32", ValueType::int32);
    nb::enum_<KVStorage>(m, "KVStorage")
        .value("fp32", KVStorage::fp32)
        .value("bf16", KVStorage::bf16)
        .value("int8", KVStorage::int8)
        .value("fp8", KVStorage::fp8)
        .value("int4", KVStorage::int4);
    nb::enum_<RowCount>(m, "RowCount")
        .value("tokens", RowCount::tokens)
        .value("outputs", RowCount::outputs)
        .value("logits", RowCount::logits);
    nb::enum_<Activation>(m, "Activation")
        .value("silu", Activation::silu)
        .value("gelu", Activation::gelu)
        .value("gelu_tanh", Activation::gelu_tanh)
        .value("gelu_sigmoid", Activation::gelu_sigmoid)
        .value("relu", Activation::relu)
        .value("relu_squared", Activation::relu_squared);
    nb::class_<Gating>(m, "Gating")
        .def(nb::init<Activation, float, float>(), "activation"_a, "limit"_a = 0.0f, "up_offset"_a = 0.0f);
}

void bind_executor(nb::module_& m) {
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int>(), "threads"_a)
        .def_prop_ro("threads", &ThreadPool::threads)
        .def(
            "region_s",
            [](ThreadPool& pool, int64_t items, int64_t regions) {
                nb::gil_scoped_release release;
                const auto start = std::chrono::steady_clock::now();
                for (int64_t i = 0; i < regions; ++i) pool.run(items, [](int64_t, int) {});
                const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
                return spent.count() / double(regions);
            },
            "items"_a, "regions"_a, "Seconds per parallel region of `items` items that do nothing.");

    nb::class_<LinearWeight>(m, "LinearWeight")
        .def_ro("rows", &LinearWeight::rows)
        .def_ro("columns", &LinearWeight::columns)
        .def(
            "use_tiles",
            [](LinearWeight& weight, const std::string& isa, const Bytes& tiles) {
                require_size("tiles", int64_t(tiles.size()), tile_bytes(isa, weight));
                require(reinterpret_cast<uintptr_t>(tiles.data()) % 64 == 0, "tiles must be 64-byte aligned");
                weight.tiles = tiles.data();
            },
            "isa"_a, "tiles"_a, "Read tiles that make_tiles of the same build and tier wrote; they must outlive it.");
    m.def("tile_bytes", &tile_bytes, "isa"_a, "weight"_a,
          "Bytes of a weight in the tier's order of reading; 0 where that is the stored one.");
    m.def(
        "make_tiles",
        [](const std::string& isa, ThreadPool& pool, const LinearWeight& weight, const WritableBytes& tiles) {
            require_size("tiles", int64_t(tiles.size()), tile_bytes(isa, weight));
            require(!weight.spread, "a weight that is nothing but tiles has no codes to make them of");
            nb::gil_scoped_release release;
            make_tiles(isa, pool, weight, tiles.data(), 0, weight.rows);
        },
        "isa"_a, "pool"_a, "weight"_a, "tiles"_a.noconvert(), "Write the tiles of a weight, on every thread.");
    m.def("fill_tiles", &fill_tiles, "isa"_a, "pool"_a, "weight"_a, "tiles"_a.noconvert(), "first_row"_a,
          "codes"_a.noconvert(), "scales"_a.noconvert(), "offsets"_a.noconvert().none(),
          "scale_codes"_a.noconvert().none(), "minimum_codes"_a.noconvert().none(),
          "Write the tiles of the rows from first_row on that are given: codes [rows, columns], a byte each (two of "
          "bf16); the rest as flat bytes, as LinearWeight stores it.");
    m.def("tiled_weight", &make_tiled_weight, "bits"_a, "rows"_a, "columns"_a, "group_size"_a, "super_group_size"_a,
          "offsets"_a, "scale_type"_a, "bias"_a.none(), "codebook"_a.none(), "row_tables"_a = false,
          "two_of_four"_a = false);
    m.def("linear_weight", &make_weight, "storage"_a, "bits"_a, "rows"_a, "columns"_a, "codes"_a, "code_row_bytes"_a,
          "group_size"_a, "scales"_a.none(), "scale_type"_a, "scale_row_stride"_a, "scale_group_stride"_a,
          "zero_points"_a.none(), "bias"_a.none(), "codebook"_a.none() = nb::none());
    m.def("refuse_linear", [](const std::string& isa, const LinearWeight& weight, InputType input, int64_t group_size) {
        const char* reason = kernel_table(isa).linear->refuse(weight, input, group_size);
        return reason ? std::optional<std::string>(reason) : std::nullopt;
    });
    m.def("linear_name", [](const std::string& isa, const LinearWeight& weight, InputType input) {
        return std::string(kernel_table(isa).linear->name(weight, input));
    });
    m.def("value_bytes", [](const std::string& isa, ValueType type, int64_t rows, int64_t width, int64_t group_size) {
        return value_bytes(kernel_table(isa), type, rows, width, group_size);
    });

    m.def(
        "kv_bytes_per_block",
        [](KVStorage storage, int64_t kv_heads, int64_t head_size, int64_t value_head_size, int64_t block_size) {
            return KVLayout{storage, kv_heads, head_size, value_head_size, block_size}.block_bytes();
        },
        "storage"_a, "kv_heads"_a, "head_size"_a, "value_head_size"_a, "block_size"_a,
        "Bytes of one block of a layer's KV.");

    using E = Executor;
    nb::class_<E>(m, "Executor")
        .def(
            "__init__",
            [](E* self, const std::string& isa, std::shared_ptr<ThreadPool> pool, int64_t max_tokens,
               int64_t max_sequences, int64_t max_outputs, int64_t block_size, int64_t max_blocks, int64_t vocabulary,
               int64_t arena_bytes) {
                const Limits limits{max_tokens, max_sequences, max_outputs, block_size, max_blocks, vocabulary};
                new (self) E(kernel_table(isa), std::move(pool), limits, arena_bytes);
            },
            "isa"_a, "pool"_a, "max_tokens"_a, "max_sequences"_a, "max_outputs"_a, "block_size"_a, "max_blocks"_a,
            "vocabulary"_a, "arena_bytes"_a)
        .def(
            "add_value",
            [](E& e, int64_t offset, RowCount rows, int64_t width, ValueType type, int64_t group_size, float half_range,
               float static_scale, int64_t each) {
                return e.add_value({offset, rows, 0, width, type, group_size, 0, -1, half_range, static_scale, each});
            },
            "offset"_a, "rows"_a, "width"_a, "type"_a, "group_size"_a, "half_range"_a = 127.5f, "static_scale"_a = 0.0f,
            "each"_a = 1)
        .def(
            "add_state",
            [](E& e, KVStorage storage, int64_t kv_heads, int64_t head_size, int64_t value_head_size, int64_t group) {
                return e.add_state({storage, kv_heads, head_size, value_head_size, e.limits().block_size}, group);
            },
            "storage"_a, "kv_heads"_a, "head_size"_a, "value_head_size"_a, "group"_a = 0)
        .def("begin_chain", &E::begin_chain, "name"_a)
        .def(
            "add_local",
            [](E& e, RowCount rows, int64_t width, ValueType type, int64_t group_size, float half_range,
               float static_scale, int64_t each) {
                return e.add_local({0, rows, 0, width, type, group_size, 0, -1, half_range, static_scale, each});
            },
            "rows"_a, "width"_a, "type"_a, "group_size"_a, "half_range"_a = 127.5f, "static_scale"_a = 0.0f,
            "each"_a = 1)
        .def("end_chain", &E::end_chain)
        .def("add_rope_table", &E::add_rope_table, "inverse_frequencies"_a, "factor"_a)
        .def(
            "embed",
            [](E& e, std::string name, int output, const LinearWeight& table, bool positions) {
                e.add(std::move(name), make_embed(e, output, table, positions));
            },
            "name"_a, "output"_a, "table"_a, "positions"_a = false)
        .def(
            "norm",
            [](E& e, std::string name, int input, int output, bool layer, int64_t size, float epsilon, float offset,
               const Floats& gain, const std::optional<Floats>& bias) {
                NormAttributes a{layer ? NormFlavour::layer : NormFlavour::rms,
                                 size,
                                 epsilon,
                                 offset,
                                 gain.data(),
                                 nullptr,
                                 int64_t(gain.size())};
                a.bias = floats("bias", bias, a.gains);
                e.add(std::move(name), make_norm(e, input, output, a));
            },
            "name"_a, "input"_a, "output"_a, "layer"_a, "size"_a, "epsilon"_a, "offset"_a, "gain"_a, "bias"_a.none())
        .def("add", [](E& e, std::string name, int a, int b,
                       int output) { e.add(std::move(name), make_add(e, a, b, output)); })
        .def("add_row",
             [](E& e, std::string name, int input, int output, const Floats& row) {
                 require_size("row", int64_t(row.size()), e.value(input).width);
                 e.add(std::move(name), make_add_row(e, input, output, row.data()));
             })
        .def("scale", [](E& e, std::string name, int input, int output,
                         float factor) { e.add(std::move(name), make_scale(e, input, output, factor)); })
        .def("softcap", [](E& e, std::string name, int input, int output,
                           float limit) { e.add(std::move(name), make_softcap(e, input, output, limit)); })
        .def("hadamard", [](E& e, std::string name, int input, int output,
                            int64_t size) { e.add(std::move(name), make_hadamard(e, input, output, size)); })
        .def("gate", [](E& e, std::string name, int input, int up, int output,
                        const Gating& gating) { e.add(std::move(name), make_gate(e, input, up, output, gating)); })
        .def("gate_pairs", [](E& e, std::string name, int input, int output,
                              const Gating& gating) { e.add(std::move(name), make_gate_pairs(e, input, output, gating)); })
        .def("rope",
             [](E& e, std::string name, int input, int output, int64_t head_size, int64_t rotary_size, bool interleaved,
                int table) {
                 const RopeAttributes a{head_size, rotary_size, interleaved ? RopeStyle::interleaved : RopeStyle::half,
                                        table};
                 e.add(std::move(name), make_rope(e, input, output, a));
             })
        .def("gather", [](E& e, std::string name, int input,
                          int output) { e.add(std::move(name), make_gather(e, input, output)); })
        .def("leading", [](E& e, std::string name, int input,
                           int output) { e.add(std::move(name), make_leading(e, input, output)); })
        .def("cast",
             [](E& e, std::string name, int input, int output) { e.add(std::move(name), make_cast(e, input, output)); })
        .def("quantise", [](E& e, std::string name, int input,
                            int output) { e.add(std::move(name), make_quantise(e, input, output)); })
        .def(
            "round",
            [](E& e, std::string name, int input, int output, bool fp8, bool symmetric, bool dynamic,
               int64_t group_size, float scale, float zero_point) {
                const Rounding rounding{fp8, symmetric, dynamic, group_size, scale, zero_point};
                e.add(std::move(name), make_round(e, input, output, rounding));
            },
            "name"_a, "input"_a, "output"_a, "fp8"_a, "symmetric"_a, "dynamic"_a, "group_size"_a, "scale"_a = 1.0f,
            "zero_point"_a = 0.0f)
        .def("order_columns",
             [](E& e, std::string name, int input, int output, const Integers& order) {
                 require_size("order", int64_t(order.size()), e.value(input).width);
                 e.add(std::move(name), make_order_columns(e, input, output, order.data()));
             })
        .def("join_heads",
             [](E& e, std::string name, int a, int b, int output, int64_t heads, bool shared) {
                 e.add(std::move(name), make_join_heads(e, a, b, output, heads, shared));
             })
        .def("sparse_linear",
             [](E& e, std::string name, int input, int output, const Floats& values, const Integers& columns) {
                 const int64_t outputs = e.value(output).width, n = int64_t(values.size()) / outputs;
                 require_size("values", int64_t(values.size()), outputs * n);
                 require_size("columns", int64_t(columns.size()), outputs * n);
                 e.add(std::move(name), make_sparse_linear(e, input, output, values.data(), columns.data(), n));
             })
        .def("dequantise", [](E& e, std::string name, int input,
                              int output) { e.add(std::move(name), make_dequantise(e, input, output)); })
        .def("linear",
             [](E& e, std::string name, int input, const std::vector<int>& outputs,
                const std::vector<LinearWeight>& weights) {
                 e.add(std::move(name), make_linear(e, input, outputs, weights));
             })
        .def("gated_linear",
             [](E& e, std::string name, int input, int output, const std::vector<LinearWeight>& weights,
                const Gating& gating) {
                 e.add(std::move(name), make_gated_linear(e, input, output, weights, gating));
             })
        .def("low_rank_adds", &E::add_low_rank, "name"_a, "x"_a, "inputs"_a, "outputs"_a)
        .def(
            "set_adapter",
            [](E& e, int low_rank, int64_t site, int64_t adapter, const Bytes& down, const Bytes& up, bool bf16,
               int64_t rank, int64_t columns, int64_t outputs, float factor) {
                const LowRankTerm term{make_narrow("down", down, bf16, rank, columns),
                                       make_narrow("up", up, bf16, outputs, rank), factor};
                e.set_adapter(low_rank, site, adapter, &term);
            },
            "low_rank"_a, "site"_a, "adapter"_a, "down"_a.noconvert(), "up"_a.noconvert(), "bf16"_a, "rank"_a,
            "columns"_a, "outputs"_a, "factor"_a,
            "What rows of an adapter get from a site from now on; panels as NarrowWeight has them, which must outlive "
            "it.")
        .def(
            "clear_adapter",
            [](E& e, int low_rank, int64_t site, int64_t adapter) { e.set_adapter(low_rank, site, adapter, nullptr); },
            "low_rank"_a, "site"_a, "adapter"_a)
        .def(
            "route",
            [](E& e, std::string name, int scores, int ids, int weights, bool sigmoid, bool normalise, float factor,
               int64_t groups, int64_t groups_chosen, int64_t group_best, const std::optional<Floats>& correction) {
                Routing routing{
                    e.value(scores).width, e.value(ids).width, groups, groups_chosen, sigmoid, normalise, factor};
                routing.group_best = group_best;
                routing.correction = floats("correction", correction, routing.experts);
                e.add(std::move(name), make_route(e, scores, ids, weights, routing));
            },
            "name"_a, "scores"_a, "ids"_a, "weights"_a, "sigmoid"_a, "normalise"_a, "factor"_a,
            "groups"_a = 1, "groups_chosen"_a = 1, "group_best"_a = 1, "correction"_a = nb::none())
        .def("experts",
             [](E& e, std::string name, int input, int ids, int output, const std::vector<LinearWeight>& weights) {
                 e.add(std::move(name), make_experts(e, input, ids, output, weights));
             })
        .def("combine", [](E& e, std::string name, int input, int weights,
                           int output) { e.add(std::move(name), make_combine(e, input, weights, output)); })
        .def("kv_write", [](E& e, std::string name, int key, int value,
                            int state) { e.add(std::move(name), make_kv_write(e, key, value, state)); })
        .def(
            "attention",
            [](E& e, std::string name, int query, int output, int state, int64_t heads, bool rounded, float scale,
               int64_t window, float softcap, const std::optional<Floats>& alibi_slopes,
               const std::optional<Floats>& sinks, bool full) {
                const float* slopes = floats("alibi_slopes", alibi_slopes, heads);
                const float* own_sinks = floats("sinks", sinks, heads);
                const AttentionAttributes a{heads, rounded, scale, window, softcap, slopes, own_sinks, full};
                e.add(std::move(name), make_attention(e, query, output, state, a));
            },
            "name"_a, "query"_a, "output"_a, "state"_a, "heads"_a, "rounded"_a, "scale"_a, "window"_a, "softcap"_a,
            "alibi_slopes"_a.none(), "sinks"_a.none() = nb::none(), "full"_a = false)
        .def("add_slot_state", &E::add_slot_state, "numbers"_a)
        .def(
            "conv",
            [](E& e, std::string name, int input, int output, int state, const Floats& weight,
               const std::optional<Floats>& bias) {
                const int64_t width = e.value(input).width;
                const ConvCall call{width, int64_t(weight.size()) / width, weight.data(), floats("bias", bias, width)};
                require_size("weight", int64_t(weight.size()), call.taps * width);
                e.add(std::move(name), make_conv(e, input, output, state, call));
            },
            "name"_a, "input"_a, "output"_a, "state"_a, "weight"_a, "bias"_a.none())
        .def(
            "scan",
            [](E& e, std::string name, int input, int steps, int in, int out, int output, int state, int64_t states,
               int64_t head_size, int64_t groups, const Floats& decay, const Floats& skip,
               const std::optional<Floats>& bias) {
                const int64_t width = e.value(input).width;
                const bool shared = states > 1 && int64_t(decay.size()) == width;
                require_size("decay", int64_t(decay.size()), shared ? width : states * width);
                require_size("skip", int64_t(skip.size()), width);
                const ScanCall call{width,  states,       head_size,   groups,
                                    shared, decay.data(), skip.data(), floats("bias", bias, width)};
                e.add(std::move(name), make_scan(e, input, steps, in, out, output, state, call));
            },
            "name"_a, "input"_a, "steps"_a, "inward"_a, "outward"_a, "output"_a, "state"_a, "states"_a, "head_size"_a,
            "groups"_a, "decay"_a, "skip"_a, "bias"_a.none())
        .def_prop_ro("slot_bytes", &E::slot_bytes)
        .def(
            "execute",
            [](E& e, const Integers& token_ids, const Integers& positions, const Slots& kv_slots,
               const Integers& query_start, const Integers& context_lengths, const Tables& block_tables,
               const Integers& output_rows, const WritableBytes& states, const std::vector<int64_t>& num_blocks,
               const std::optional<Integers>& state_slots, const std::optional<WritableBytes>& slots,
               std::optional<int64_t> logit_rows, const std::optional<Integers>& adapters) {
                Batch batch =
                    make_batch(token_ids, positions, kv_slots, query_start, context_lengths, block_tables, output_rows);
                require_size("states", int64_t(states.size()), e.kv_bytes(num_blocks));
                batch.logits = logit_rows.value_or(batch.outputs);
                if (state_slots && slots) {
                    require_size("state_slots", int64_t(state_slots->size()), batch.sequences);
                    require_size("slots", int64_t(slots->size()), e.limits().max_sequences * e.slot_bytes());
                    batch.state_slots = state_slots->data();
                }
                if (adapters) {
                    require_size("adapters", int64_t(adapters->size()), batch.tokens);
                    batch.adapters = adapters->data();
                }
                nb::gil_scoped_release release;
                e.execute(batch, reinterpret_cast<char*>(states.data()), num_blocks,
                          slots ? reinterpret_cast<char*>(slots->data()) : nullptr);
            },
            "token_ids"_a.noconvert(), "positions"_a.noconvert(), "kv_slots"_a.noconvert(), "query_start"_a.noconvert(),
            "context_lengths"_a.noconvert(), "block_tables"_a.noconvert(), "output_rows"_a.noconvert(),
            "states"_a.noconvert(), "num_blocks"_a, "state_slots"_a.noconvert().none() = nb::none(),
            "slots"_a.noconvert().none() = nb::none(), "logit_rows"_a.none() = nb::none(),
            "adapters"_a.noconvert().none() = nb::none())
        .def("rows", &E::rows_of_last_step, "value"_a)
        .def(
            "read",
            [](const E& e, int value, nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
                require_size("out", int64_t(out.size()), e.rows_of_last_step(value) * e.value(value).width);
                nb::gil_scoped_release release;
                e.read(value, out.data());
            },
            "value"_a, "out"_a.noconvert())
        .def(
            "view",
            [](const E& e, int value) {
                require(e.value(value).type == ValueType::fp32, "only fp32 values can be viewed");
                const size_t shape[2] = {size_t(e.rows_of_last_step(value)), size_t(e.value(value).width)};
                auto* data = reinterpret_cast<const float*>(e.arena() + e.value(value).offset);
                return nb::ndarray<nb::numpy, const float, nb::ndim<2>>(data, 2, shape, nb::handle());
            },
            nb::rv_policy::reference_internal, "value"_a)
        .def("set_profiling", &E::set_profiling, "on"_a)
        .def("profile", &E::profile);
}

}  // namespace

NB_MODULE(_native, m) {
    m.attr("build_id") = LINNET_BUILD_ID;
    m.def("available_isas", &available_tiers, "Tiers this machine can run, best first.");
    m.def("default_threads", &ThreadPool::default_threads, "Physical cores this process may run on.");
    bind_enums(m);
    bind_executor(m);
    bind_sampling(m);
    bind_linear_run(m);
    bind_limits(m);
}
