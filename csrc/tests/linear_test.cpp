// SPDX-License-Identifier: Apache-2.0
// The linear kernels of every tier this CPU has: right against double arithmetic, rows bit-equal whatever the batch and
// the split, nothing read or written outside its arrays (run under the sanitizers).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/isa.h"

using namespace linnet;

namespace {

std::mt19937_64 randomness(20260101);
int failures = 0;

int64_t pick(int64_t low, int64_t high) { return low + int64_t(randomness() % uint64_t(high - low + 1)); }
float normal() {
    static std::normal_distribution<float> distribution;
    return distribution(randomness);
}
uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bf16(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

// A random weight in exactly as many bytes as it has (the sanitizer sees one byte too far), and its meaning in double.
struct TestWeight {
    LinearWeight view;
    std::vector<uint8_t> codes;
    std::vector<uint16_t> scales;
    std::vector<int8_t> zeros;
    std::vector<float> bias;
    std::vector<double> values;
};

void pack(uint8_t* row, int64_t column, int bits, uint32_t code) {
    for (int b = 0; b < bits; ++b) {
        const int64_t bit = column * bits + b;
        if ((code >> b) & 1) row[bit / 8] |= uint8_t(1u << (bit % 8));
    }
}

double fp8_value(int code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    return code & 128 ? -magnitude : magnitude;
}

const float CODEBOOK[16] = {-1.0f,  -0.7f, -0.53f, -0.4f, -0.28f, -0.18f, -0.09f, 0.0f,
                            0.079f, 0.16f, 0.25f,  0.34f, 0.44f,  0.56f,  0.72f,  1.0f};

// `narrow`: a codebook's values as bf16 rows meet them.
TestWeight make_weight(Storage storage, int bits, int64_t rows, int64_t columns, int64_t group, bool zero_points,
                       bool narrow = false) {
    TestWeight w;
    const int64_t groups = (columns + group - 1) / group;
    const bool integer = storage == Storage::packed_int || storage == Storage::plain_int8;
    const bool scaled = integer || storage == Storage::fp8_e4m3 || storage == Storage::codebook;
    const bool packed = storage == Storage::packed_int || storage == Storage::codebook;
    w.view.storage = storage;
    w.view.bits = bits;
    w.view.rows = rows;
    w.view.columns = columns;
    w.view.group_size = group;
    w.view.code_row_bytes = packed ? (columns * bits + 31) / 32 * 4 : columns * bits / 8;
    w.codes.assign(size_t(rows * w.view.code_row_bytes), 0);
    w.values.resize(size_t(rows * columns));
    for (int64_t i = 0; i < rows; ++i) w.bias.push_back(normal());
    if (scaled) {
        for (int64_t i = 0; i < rows * groups; ++i) {
            w.scales.push_back(to_bf16(0.01f + 0.01f * float(pick(0, 100)) / 100.0f));
            w.zeros.push_back(int8_t(zero_points ? pick(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) : 0));
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        uint8_t* row = w.codes.data() + r * w.view.code_row_bytes;
        for (int64_t c = 0; c < columns; ++c) {
            double& value = w.values[size_t(r * columns + c)];
            const int64_t g = r * groups + c / group;
            if (scaled && !integer) {
                const int code = int(storage == Storage::codebook ? pick(0, 15) : pick(0, 126) | pick(0, 1) << 7);
                const float scale = from_bf16(w.scales[size_t(g)]);
                if (storage == Storage::codebook)
                    pack(row, c, bits, uint32_t(code));
                else
                    row[c] = uint8_t(code);
                value = storage == Storage::codebook ? double(CODEBOOK[code] * scale) : fp8_value(code) * scale;
                if (narrow && storage == Storage::codebook) value = from_bf16(to_bf16(float(value)));
            } else if (scaled) {
                const int64_t code = pick(-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
                if (storage == Storage::packed_int)
                    pack(row, c, bits, uint32_t(code + (1 << (bits - 1))));
                else
                    row[c] = uint8_t(code);
                value = double(code - w.zeros[size_t(g)]) * from_bf16(w.scales[size_t(g)]);
            } else if (storage == Storage::bf16) {
                const uint16_t half = to_bf16(normal());
                std::memcpy(row + 2 * c, &half, 2);
                value = from_bf16(half);
            } else {
                const float x = normal();
                std::memcpy(row + 4 * c, &x, 4);
                value = x;
            }
        }
    }
    w.view.codes = w.codes.data();
    w.view.bias = w.bias.data();
    if (storage == Storage::codebook) w.view.codebook = CODEBOOK;
    if (scaled) {
        w.view.scales = w.scales.data();
        w.view.scale_type = ScaleType::bf16;
        w.view.scale_row_stride = groups;
        w.view.scale_group_stride = 1;
        if (zero_points) {
            w.view.zero_points = w.zeros.data();
            w.view.zero_point_row_stride = groups;
            w.view.offsets = Offsets::zero_points;
        }
    }
    return w;
}

struct Kind {  // of a weight that is nothing but tiles
    int bits;
    int64_t group, super_group;
    Offsets offsets;
    bool codebook = false;
    bool two_of_four = false;  // of 16 bits: bf16
};

struct TestTiles {
    TestWeight weight;
    std::vector<int8_t> scale_codes, minimum_codes;
    std::vector<uint16_t> minimums;
    std::unique_ptr<char, void (*)(void*)> tiles{nullptr, std::free};
};

// Filled in two pieces, each in arrays that hold just its rows.
TestTiles make_tiled(const LinearKernels& k, const Kind& kind, int64_t rows, int64_t columns) {
    TestTiles made;
    TestWeight& w = made.weight;
    LinearWeight& view = w.view;
    const int64_t groups = (columns + kind.group - 1) / kind.group;
    const int64_t super = kind.super_group > 0 ? kind.super_group : kind.group, supers = (columns + super - 1) / super;
    const bool minimums = kind.offsets == Offsets::minimums, zeros = kind.offsets == Offsets::zero_points;
    const bool two_level = kind.super_group > 0, from_zero = minimums || kind.codebook;
    const bool numbers = kind.bits == 16;
    view.storage = numbers ? Storage::bf16 : kind.codebook ? Storage::codebook : Storage::packed_int;
    view.spread = true;
    view.two_of_four = kind.two_of_four;
    view.bits = kind.bits;
    view.rows = rows;
    view.columns = columns;
    view.group_size = kind.group;
    view.super_group_size = kind.super_group;
    view.offsets = kind.offsets;
    view.scale_type = ScaleType::bf16;
    if (kind.codebook) view.codebook = CODEBOOK;
    for (int64_t i = 0; i < rows; ++i) w.bias.push_back(normal());
    view.bias = w.bias.data();
    for (int64_t i = 0; i < rows * supers; ++i) {
        w.scales.push_back(to_bf16(0.01f * normal()));
        made.minimums.push_back(to_bf16(0.01f * normal()));
    }
    for (int64_t i = 0; i < rows * groups; ++i) {
        w.zeros.push_back(int8_t(pick(-3, 3)));
        made.scale_codes.push_back(int8_t(minimums ? pick(0, 63) : pick(-128, 127)));
        made.minimum_codes.push_back(int8_t(pick(0, 63)));
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0, left_out[2] = {}; c < columns; ++c) {
            if (c % 4 == 0) {
                left_out[0] = c + pick(0, 3);
                left_out[1] = c + pick(0, 3);
                if (left_out[0] == left_out[1]) left_out[1] ^= 1;
            }
            const bool zero = kind.two_of_four && (c == left_out[0] || c == left_out[1]);
            if (numbers) {
                const uint16_t own = zero ? 0 : to_bf16(normal());
                w.codes.push_back(uint8_t(own));
                w.codes.push_back(uint8_t(own >> 8));
                w.values.push_back(from_bf16(own));
                continue;
            }
            const int64_t half = from_zero ? 0 : int64_t(1) << (kind.bits - 1);
            const int64_t any = pick(-half, (int64_t(1) << kind.bits) - 1 - half);
            const int64_t code = zero ? 0 : kind.bits == 1 ? 2 * any + 1 : any;
            const size_t g = size_t(r * groups + c / kind.group), s = size_t(r * supers + c / super);
            w.codes.push_back(uint8_t(code));
            double scale = from_bf16(w.scales[s]), minimum = minimums ? from_bf16(made.minimums[s]) : 0;
            if (two_level) {
                scale *= made.scale_codes[g];
                minimum *= made.minimum_codes[g];
            }
            const double number = kind.codebook ? double(CODEBOOK[code]) : double(code - (zeros ? w.zeros[g] : 0));
            w.values.push_back(number * scale - minimum);
        }
    const int64_t bytes = k.tile_bytes(view), unit = k.column_unit(view, InputType::int8);
    made.tiles.reset(static_cast<char*>(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64)));
    std::memset(made.tiles.get(), 0xa5, size_t(bytes));
    const int64_t middle = rows > unit ? unit : rows;
    for (int64_t first = 0; first < rows; first = first == 0 && middle < rows ? middle : rows) {
        LinearWeight part = view;
        const int64_t last = first == 0 ? middle : rows;
        const auto cut = [&](const auto& whole, int64_t width) {
            return std::vector(whole.begin() + first * width, whole.begin() + last * width);
        };
        const auto codes = cut(w.codes, columns * (numbers ? 2 : 1));
        const auto scales = cut(w.scales, supers), lows = cut(made.minimums, supers);
        const auto zero_points = cut(w.zeros, groups), scale_codes = cut(made.scale_codes, groups);
        const auto minimum_codes = cut(made.minimum_codes, groups);
        part.first_row = first;
        part.codes = codes.data();
        part.code_row_bytes = columns * (numbers ? 2 : 1);
        part.scales = numbers ? nullptr : scales.data();
        part.scale_row_stride = supers;
        part.scale_group_stride = 1;
        part.minimums = minimums ? lows.data() : nullptr;
        part.zero_points = zeros ? zero_points.data() : nullptr;
        part.zero_point_row_stride = groups;
        part.scale_codes = two_level ? scale_codes.data() : nullptr;
        part.minimum_codes = two_level && minimums ? minimum_codes.data() : nullptr;
        k.make_tiles(part, made.tiles.get(), first, last);
    }
    view.tiles = made.tiles.get();
    return made;
}

struct Activations {
    int64_t rows, columns, group;
    std::vector<float> floats;
    std::vector<uint16_t> halves;
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    QuantisedRows quantised;
    std::vector<double> values;
};

Activations make_rows(const LinearKernels& kernels, InputType type, int64_t rows, int64_t columns, int64_t group) {
    Activations x = {rows, columns, group, {}, {}, {}, {}, {}, {}, {}};
    for (int64_t i = 0; i < rows * columns; ++i) x.floats.push_back(normal() * (pick(0, 99) == 0 ? 30.0f : 1.0f));
    x.values.assign(x.floats.begin(), x.floats.end());
    if (type == InputType::bf16) {
        for (size_t i = 0; i < x.floats.size(); ++i) {
            x.halves.push_back(to_bf16(x.floats[i]));
            x.values[i] = from_bf16(x.halves[i]);
        }
    }
    if (type == InputType::int8) {
        const int64_t groups = (columns + group - 1) / group;
        const int64_t bytes = kernels.quantised_row_bytes(columns, group);
        x.codes.assign(size_t(rows * bytes), 99);
        x.scales.resize(size_t(rows * groups));
        x.sums.resize(size_t(rows * groups));
        x.quantised = {x.codes.data(), bytes, x.scales.data(), x.sums.data(), columns, groups, group};
        kernels.quantise_rows(x.floats.data(), columns, x.quantised, 0, rows);
        std::vector<float> back(size_t(rows * columns));
        kernels.dequantise_rows(x.quantised, back.data(), columns, 0, rows);
        for (size_t i = 0; i < back.size(); ++i) {
            const size_t g = i / size_t(columns) * size_t(groups) + i % size_t(columns) / size_t(group);
            if (std::fabs(back[i] - x.floats[i]) > 0.5001f * x.scales[g]) ++failures;
            x.values[i] = back[i];
        }
    }
    return x;
}

void call(const LinearKernels& k, const LinearWeight& w, InputType type, const Activations& x, int64_t row,
          int64_t rows, std::vector<float>& y, int64_t n_begin, int64_t n_end) {
    const size_t bytes = size_t(k.scratch_bytes(w, type, rows));
    void* scratch = bytes == 0 ? nullptr : std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (type == InputType::fp32) {
        k.linear_fp32(w, x.floats.data() + row * x.columns, x.columns, y.data(), w.rows, rows, n_begin, n_end, scratch);
    } else if (type == InputType::bf16) {
        k.linear_bf16(w, x.halves.data() + row * x.columns, x.columns, y.data(), w.rows, rows, n_begin, n_end, scratch);
    } else {
        QuantisedRows part = x.quantised;
        part.codes += row * part.row_bytes;
        part.scales += row * part.groups;
        part.sums += row * part.groups;
        k.linear_int8(w, part, y.data(), w.rows, rows, n_begin, n_end, scratch);
    }
    std::free(scratch);
}

void check(const char* tier, const LinearKernels& k, const TestWeight& w, InputType type, int64_t rows, int64_t group) {
    const LinearWeight& view = w.view;
    char text[256];
    std::snprintf(text, sizeof text, "%s %s rows %ld n %ld k %ld group %ld input group %ld", tier, k.name(view, type),
                  rows, view.rows, view.columns, view.group_size, group);
    if (const char* reason = k.refuse(view, type, group)) {
        std::printf("FAIL %s: refused: %s\n", text, reason);
        ++failures;
        return;
    }
    const Activations x = make_rows(k, type, rows, view.columns, group);
    std::vector<float> y(size_t(rows * view.rows), NAN);
    call(k, view, type, x, 0, rows, y, 0, view.rows);
    double error = 0, power = 0;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < view.rows; ++n) {
            double sum = w.bias[size_t(n)];
            for (int64_t c = 0; c < view.columns; ++c)
                sum += x.values[size_t(r * view.columns + c)] * w.values[size_t(n * view.columns + c)];
            const double difference = sum - y[size_t(r * view.rows + n)];
            error += difference * difference;
            power += sum * sum;
        }
    }
    if (!(error <= 1e-11 * power)) {
        std::printf("FAIL %s: normalised error %g\n", text, error / power);
        ++failures;
    }
    const int64_t unit = k.column_unit(view, type);
    const int64_t tile_bytes = type == InputType::int8 && !view.spread ? k.tile_bytes(view) : 0;
    LinearWeight tiled = view;
    std::unique_ptr<char, void (*)(void*)> tiles(nullptr, std::free);
    if (tile_bytes > 0) {
        tiles.reset(static_cast<char*>(std::aligned_alloc(64, size_t(tile_bytes + 63) / 64 * 64)));
        std::memset(tiles.get(), 0xa5, size_t(tile_bytes));
        for (int64_t n = 0; n < view.rows; n += unit)
            k.make_tiles(view, tiles.get(), n, n + unit < view.rows ? n + unit : view.rows);
        tiled.tiles = tiles.get();
    }
    for (int trial = 0; trial < 4; ++trial) {
        const int64_t first = pick(0, rows - 1), count = pick(1, rows - first);
        std::vector<float> part(size_t(count * view.rows), NAN);
        for (int64_t n = 0; n < view.rows;) {
            int64_t end = n + unit * pick(1, 3);
            if (end > view.rows) end = view.rows;
            call(k, pick(0, 1) ? view : tiled, type, x, first, count, part, n, end);
            n = end;
        }
        if (std::memcmp(part.data(), y.data() + first * view.rows, part.size() * 4) != 0) {
            std::printf("FAIL %s: rows %ld..%ld differ from the whole batch\n", text, first, first + count);
            ++failures;
        }
    }
}

// What GGUF brings, and groups that are anybody's guess.
const Kind KINDS[] = {
    {4, 32, 0, Offsets::none},         {4, 32, 0, Offsets::minimums},   {5, 32, 0, Offsets::none},
    {1, 4096, 0, Offsets::none},       {1, 32, 0, Offsets::none},       {1, 40, 0, Offsets::none},
    {5, 32, 0, Offsets::minimums},     {8, 32, 0, Offsets::none},       {2, 16, 256, Offsets::minimums},
    {3, 16, 256, Offsets::none},       {4, 32, 256, Offsets::minimums}, {5, 32, 256, Offsets::minimums},
    {6, 16, 256, Offsets::none},       {2, 256, 0, Offsets::none},      {6, 64, 0, Offsets::zero_points},
    {8, 128, 0, Offsets::zero_points}, {5, 24, 0, Offsets::minimums},   {4, 8, 0, Offsets::zero_points},
    {3, 40, 80, Offsets::none},
};

void test_tiles(const char* tier, const LinearKernels& k) {
    for (const Kind& kind : KINDS) {
        const int64_t step = kind.super_group > 0 ? kind.super_group : kind.group;
        const int64_t rows = pick(0, 1) == 0 ? pick(1, 4) : pick(5, 21), columns = step * pick(1, 1 + 1024 / step);
        const TestTiles made = make_tiled(k, kind, pick(1, 90), columns);
        const int64_t spans[] = {kind.group, step, columns, kind.super_group == 256 ? 128 : kind.group};
        for (const int64_t span : spans) check(tier, k, made.weight, InputType::int8, rows, span);
        check(tier, k, made.weight, InputType::fp32, rows, 0);
        std::vector<float> row(static_cast<size_t>(columns));
        const int64_t n = pick(0, made.weight.view.rows - 1);
        k.decode_row(made.weight.view, n, row.data());
        for (int64_t c = 0; c < columns; ++c) {
            const double wanted = made.weight.values[size_t(n * columns + c)];
            if (std::fabs(row[size_t(c)] - wanted) > 1e-6 * std::fabs(wanted) + 1e-6) {
                std::printf("FAIL %s: a row of %d bits is decoded to %g, not %g\n", tier, kind.bits, row[size_t(c)],
                            wanted);
                ++failures;
                break;
            }
        }
    }
    const int64_t groups[] = {32, 64, 128, 256, 40, 0};
    for (const int64_t group : groups)
        for (const int bits : {4, 8}) {
            const int64_t columns = group > 0 ? group * pick(1, 1 + 1024 / group) : 4 * pick(1, 300);
            const int64_t own = group > 0 ? group : columns;
            const TestTiles made = make_tiled(k, {bits, own, 0, Offsets::none, false, true}, pick(1, 90), columns);
            for (const int64_t span : {own, columns, int64_t(group > 0 ? own : 128)})
                if (k.refuse(made.weight.view, InputType::int8, span) == nullptr)
                    check(tier, k, made.weight, InputType::int8, pick(1, 21), span);
            check(tier, k, made.weight, InputType::fp32, pick(1, 21), 0);
        }
    for (const InputType type : {InputType::fp32, InputType::bf16}) {
        const int64_t columns = 4 * pick(1, 300);
        const TestTiles made = make_tiled(k, {16, columns, 0, Offsets::none, false, true}, pick(1, 90), columns);
        if (k.refuse(made.weight.view, type, columns) == nullptr)  // not where pairs of bf16 are multiplied
            check(tier, k, made.weight, type, pick(1, 40), columns);
    }
    const Kind books[] = {{4, 32, 0, Offsets::none, true}, {4, 32, 256, Offsets::none, true}};
    for (const Kind& kind : books) {
        const TestTiles made = make_tiled(k, kind, pick(1, 90), 256 * pick(1, 4));
        check(tier, k, made.weight, InputType::fp32, pick(1, 21), 0);
    }
}

void test_tier(const char* tier, const LinearKernels& k, int trials) {
    std::printf("%s\n", tier);
    for (int trial = 0; trial < 1 + trials / 5; ++trial) test_tiles(tier, k);
    for (int trial = 0; trial < trials; ++trial) {
        const int64_t rows = pick(0, 2) == 0 ? pick(1, 4) : pick(1, 21);
        const int64_t outputs = pick(1, 90);
        const int64_t groups[] = {32, 64, 128, 256, 16, 8};
        const int64_t group = groups[pick(0, 5)];
        const int64_t columns = pick(0, 1) == 0 ? group * pick(1, 9) : pick(1, 700);
        const int bits[] = {4, 4, 8, 2, 3};
        const int width = bits[pick(0, 4)];
        const bool zero_points = pick(0, 2) == 0;
        check(tier, k, make_weight(Storage::packed_int, width, outputs, columns, group, zero_points), InputType::int8,
              rows, group);
        check(tier, k, make_weight(Storage::packed_int, width, outputs, columns, columns, zero_points), InputType::int8,
              rows, pick(0, 1) == 0 ? 128 : columns);
        check(tier, k, make_weight(Storage::packed_int, width, outputs, columns, group, zero_points), InputType::int8,
              rows, columns);
        check(tier, k, make_weight(Storage::plain_int8, 8, outputs, columns, columns, false), InputType::int8, rows,
              columns);
        const int64_t odd = pick(1, 50);
        check(tier, k, make_weight(Storage::packed_int, width, outputs, odd * 3, odd, zero_points), InputType::int8,
              rows, odd);
        check(tier, k, make_weight(Storage::packed_int, width, outputs, columns, odd, zero_points), InputType::fp32,
              rows, 0);
        check(tier, k, make_weight(Storage::bf16, 16, outputs, columns, columns, false), InputType::bf16, rows, 0);
        check(tier, k, make_weight(Storage::fp32, 32, outputs, columns, columns, false), InputType::fp32, rows, 0);
        check(tier, k, make_weight(Storage::packed_int, 4, outputs, columns, group, false), InputType::bf16, rows, 0);
        check(tier, k, make_weight(Storage::fp8_e4m3, 8, outputs, columns, columns, false), InputType::bf16, rows, 0);
        check(tier, k, make_weight(Storage::fp8_e4m3, 8, outputs, columns, group, false), InputType::bf16, rows, 0);
        for (const int64_t size : {group, columns, odd})
            check(tier, k, make_weight(Storage::codebook, 4, outputs, columns, size, false, true), InputType::bf16,
                  rows, 0);
        check(tier, k, make_weight(Storage::codebook, 4, outputs, columns, group, false), InputType::fp32, rows, 0);
    }
    for (const int64_t rows : {2, 9, 33, 41}) {
        const int64_t columns = 2048 * pick(1, 2) + 96 * pick(1, 3);
        check(tier, k, make_weight(Storage::codebook, 4, 41, columns, 96, false, true), InputType::bf16, rows, 0);
        check(tier, k, make_weight(Storage::fp8_e4m3, 8, 41, columns, columns, false), InputType::bf16, rows, 0);
    }
    for (const int64_t rows : {3, 12, 13, 41}) {  // more than one block of columns, on both sides of every row limit
        const int64_t columns = 2048 * pick(1, 2) + pick(1, 80);
        check(tier, k, make_weight(Storage::bf16, 16, pick(1, 60), columns, columns, false), InputType::bf16, rows, 0);
    }
    check(tier, k, make_weight(Storage::packed_int, 4, 40, 8192, 128, false), InputType::int8, 9, 128);
    check(tier, k, make_weight(Storage::plain_int8, 8, 40, 8192, 8192, false), InputType::int8, 9, 8192);
    check(tier, k, make_weight(Storage::packed_int, 4, 40, 4096, 1024, true), InputType::int8, 9, 1024);
}

}  // namespace

int main() {
    const char* set = std::getenv("LINNET_FUZZ_TRIALS");
    const int trials = set != nullptr ? std::atoi(set) : 20;
    for (const std::string& tier : available_tiers()) test_tier(tier.c_str(), *kernel_table(tier).linear, trials);
    std::printf("linear kernels: %d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
