// SPDX-License-Identifier: Apache-2.0
// The instruction-set tiers, declared once, best first: X(tier, base, ...). A tier that only projections know
// (avx512_vnni, avx2_vnni, neon_i8mm) takes everything else from `base`; the others are their own base. CMakeLists.txt
// gives each its compiler flags, isa.cpp asks the machine for it.
#pragma once

#if defined(LINNET_X86_TIERS)
#define LINNET_TIERS(X, ...)                               \
    X(avx512_bf16, avx512_bf16 __VA_OPT__(, ) __VA_ARGS__) \
    X(avx512_vnni, avx512 __VA_OPT__(, ) __VA_ARGS__)      \
    X(avx512, avx512 __VA_OPT__(, ) __VA_ARGS__)           \
    X(avx2_vnni, avx2 __VA_OPT__(, ) __VA_ARGS__)          \
    X(avx2, avx2 __VA_OPT__(, ) __VA_ARGS__)               \
    X(portable, portable __VA_OPT__(, ) __VA_ARGS__)
#elif defined(LINNET_ARM_TIERS)
#define LINNET_TIERS(X, ...)                          \
    X(neon_i8mm, portable __VA_OPT__(, ) __VA_ARGS__) \
    X(portable, portable __VA_OPT__(, ) __VA_ARGS__)
#else
#define LINNET_TIERS(X, ...) X(portable, portable __VA_OPT__(, ) __VA_ARGS__)
#endif

// LINNET_TIERS(LINNET_DECLARE_TABLE, Table, function) declares every tier's `const Table& function()`.
#define LINNET_DECLARE_TABLE(tier, base, Table, function) \
    namespace tier {                                      \
    const Table& function();                              \
    }
// LINNET_TIERS(LINNET_RETURN_TABLE, name, function) returns the table of the tier called `name`, if there is one.
#define LINNET_RETURN_TABLE(tier, base, name, function) \
    if (name == #tier) return tier::function();
// The same for functions that a projections-only tier takes from its base.
#define LINNET_RETURN_BASE_TABLE(tier, base, name, function) \
    if (name == #tier) return base::function();
