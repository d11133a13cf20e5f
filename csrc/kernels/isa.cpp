// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <stdexcept>

#if defined(LINNET_ARM_TIERS)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace linnet {

namespace {

#if defined(LINNET_X86_TIERS)
// __builtin_cpu_supports asks CPUID and, for the wide registers, whether the operating system saves them.
bool runs_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}
bool runs_avx2_vnni() { return runs_avx2() && __builtin_cpu_supports("avxvnni"); }
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool runs_avx512_vnni() { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool runs_avx512_bf16() {
    return runs_avx512_vnni() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}
#elif defined(LINNET_ARM_TIERS)
bool runs_neon_i8mm() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#endif
bool runs_portable() { return true; }

// The base's functions with the tier's own projections.
KernelTable with_projections(KernelTable table, const char* isa, const LinearKernels& linear) {
    table.isa = isa;
    table.linear = &linear;
    return table;
}

}  // namespace

std::vector<std::string> available_tiers() {
    std::vector<std::string> tiers;
#define LINNET_ADD(tier, base) \
    if (runs_##tier()) tiers.push_back(#tier);
    LINNET_TIERS(LINNET_ADD)
#undef LINNET_ADD
    return tiers;
}

const KernelTable& kernel_table(const std::string& isa) {
    const std::vector<std::string> tiers = available_tiers();
    const std::string& wanted = isa.empty() ? tiers.front() : isa;
    std::string known;
    bool available = false;
    for (const std::string& tier : tiers) {
        available = available || tier == wanted;
        known += (known.empty() ? "" : ", ") + tier;
    }
    if (!available)
        throw std::invalid_argument("instruction set '" + wanted + "' is not available here; available: " + known);
#define LINNET_FIND(tier, base)                                                                                 \
    if (wanted == #tier) {                                                                                      \
        static const KernelTable table = with_projections(base::kernel_table(), #tier, tier::linear_kernels()); \
        return table;                                                                                           \
    }
    LINNET_TIERS(LINNET_FIND)
#undef LINNET_FIND
    throw std::logic_error("a tier without kernels: " + wanted);
}

}  // namespace linnet
