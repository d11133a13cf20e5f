// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <stdexcept>

#if defined(LINNET_ARM_TIERS)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace linnet {

std::vector<std::string> available_tiers() {
    std::vector<std::string> tiers;
#if defined(LINNET_X86_TIERS)
    // __builtin_cpu_supports asks CPUID and, for the wide registers, whether the operating system saves them.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vbmi")) {
        tiers.push_back("avx512_vnni");
    }
    if (avx512) tiers.push_back("avx512");
    if (avx2 && __builtin_cpu_supports("avxvnni")) tiers.push_back("avx2_vnni");
    if (avx2) tiers.push_back("avx2");
#elif defined(LINNET_ARM_TIERS)
    if ((getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0) tiers.push_back("neon_i8mm");
#endif
    tiers.push_back("portable");
    return tiers;
}

#if defined(LINNET_X86_TIERS) || defined(LINNET_ARM_TIERS)
// A tier that has one instruction more than another, which only projections use.
static KernelTable with_projections(KernelTable base, const char* isa, const LinearKernels& linear) {
    base.isa = isa;
    base.linear = &linear;
    return base;
}
#endif

const KernelTable& kernel_table(const std::string& isa) {
    const std::vector<std::string> tiers = available_tiers();
    const std::string& wanted = isa.empty() ? tiers.front() : isa;
    std::string known;
    for (const std::string& tier : tiers) {
        if (tier == wanted) {
#if defined(LINNET_X86_TIERS)
            if (tier == "avx512_vnni") return avx512_vnni::kernel_table();
            if (tier == "avx512") return avx512::kernel_table();
            if (tier == "avx2_vnni") {
                static const KernelTable table =
                    with_projections(avx2::kernel_table(), "avx2_vnni", avx2_vnni::linear_kernels());
                return table;
            }
            if (tier == "avx2") return avx2::kernel_table();
#elif defined(LINNET_ARM_TIERS)
            if (tier == "neon_i8mm") {
                static const KernelTable table =
                    with_projections(portable::kernel_table(), "neon_i8mm", neon_i8mm::linear_kernels());
                return table;
            }
#endif
            return portable::kernel_table();
        }
        known += (known.empty() ? "" : ", ") + tier;
    }
    throw std::invalid_argument("instruction set '" + wanted + "' is not available here; available: " + known);
}

}  // namespace linnet
