// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <stdexcept>

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
#endif
    tiers.push_back("portable");
    return tiers;
}

#if defined(LINNET_X86_TIERS)
// AVX-VNNI is one instruction, and only projections use it.
static const KernelTable& avx2_vnni_table() {
    static const KernelTable table = [] {
        KernelTable made = avx2::kernel_table();
        made.isa = "avx2_vnni";
        made.linear = &avx2_vnni::linear_kernels();
        return made;
    }();
    return table;
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
            if (tier == "avx2_vnni") return avx2_vnni_table();
            if (tier == "avx2") return avx2::kernel_table();
#endif
            return portable::kernel_table();
        }
        known += (known.empty() ? "" : ", ") + tier;
    }
    throw std::invalid_argument("instruction set '" + wanted + "' is not available here; available: " + known);
}

}  // namespace linnet
