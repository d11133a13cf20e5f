// SPDX-License-Identifier: Apache-2.0
#include "limits.h"

#include "kernels/linear/lanes.h"

namespace linnet::LINNET_TIER {

// Keeps the compiler from computing with what it knows of the value.
#if defined(LINNET_AVX512)
#define LINNET_OPAQUE(x) asm volatile("" : "+v"((x).v))
constexpr int CHAINS = 12;
#elif defined(LINNET_AVX2)
#define LINNET_OPAQUE(x) asm volatile("" : "+x"((x).a), "+x"((x).b))
constexpr int CHAINS = 6;  // of two registers each
#else
#define LINNET_OPAQUE(x) asm volatile("" : "+m"((x).v))
constexpr int CHAINS = 2;
#endif

// As many streams as a kernel that works on several outputs at once has.
template <int STREAMS>
static int64_t read(const uint8_t* p, int64_t bytes) {
    const int64_t part = bytes / STREAMS;
    constexpr int LINES = 4 / STREAMS;  // consecutive ones of a stream, so that four sums hide the latency of adding
    Ints sums[4] = {splat_int(0), splat_int(0), splat_int(0), splat_int(0)};
    for (int64_t i = 0; i + 64 * LINES <= part; i += 64 * LINES)
        for (int s = 0; s < 4; ++s)
            sums[s] = sums[s] + load_ints((const int32_t*)(p + s / LINES * part + i + s % LINES * 64));
    alignas(64) int32_t lanes[16];
    store_ints(lanes, sums[0] + sums[1] + sums[2] + sums[3]);
    int64_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += lanes[i];
    return sum;
}

template <typename Lanes, typename Step>
static int64_t chains(int64_t iterations, Lanes start, const Step& step) {
    Lanes sums[CHAINS];
#pragma GCC unroll 12
    for (int c = 0; c < CHAINS; ++c) {
        sums[c] = start;
        LINNET_OPAQUE(sums[c]);
    }
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; ++c) sums[c] = step(sums[c]);
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; ++c) LINNET_OPAQUE(sums[c]);
    }
    return iterations * CHAINS * 16;
}

static int64_t multiply_int8(int64_t iterations) {
    Ints codes = splat_int(0x01010101), x = splat_int(0x02030405);
    LINNET_OPAQUE(codes);
    LINNET_OPAQUE(x);
    return 4 * chains(iterations, splat_int(0), [&](Ints sum) {
               LINNET_OPAQUE(codes);  // else the products, where the tier forms them apart, leave the loop
               return dot_bytes<true>(sum, codes, x);
           });
}

static int64_t multiply_bf16(int64_t iterations) {
#if defined(LINNET_BF16)
    Ints a = splat_int(0x3f803f80), b = splat_int(0);
    LINNET_OPAQUE(a);
    LINNET_OPAQUE(b);
    return 2 * chains(iterations, splat(0.0f),
                      [&](Floats sum) { return Floats{_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)}; });
#else
    return iterations * 0;
#endif
}

static int64_t multiply_fp32(int64_t iterations) {
    Floats a = splat(1.0f), b = splat(0.0f);
    LINNET_OPAQUE(a);
    LINNET_OPAQUE(b);
    return chains(iterations, splat(0.0f), [&](Floats sum) { return fma(a, b, sum); });
}

const LimitKernels& limit_kernels() {
    static constexpr LimitKernels table = {
        .read = read<1>,
        .read_four = read<4>,
        .multiply_int8 = multiply_int8,
        .multiply_bf16 = multiply_bf16,
        .multiply_fp32 = multiply_fp32,
    };
    return table;
}

}  // namespace linnet::LINNET_TIER
