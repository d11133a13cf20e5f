// SPDX-License-Identifier: Apache-2.0
#include "sampling_host.h"

#include <stdexcept>
#include <utility>

#include "kernels/isa.h"

namespace linnet {

static const SamplingKernels& kernels_of(const std::string& isa) {
    const std::string tier = kernel_table(isa).isa;  // resolves "" and refuses unknown names
    LINNET_TIERS(LINNET_RETURN_BASE_TABLE, tier, sampling_kernels)
    throw std::logic_error("a tier without sampling: " + tier);
}

Sampler::Sampler(const std::string& isa, std::shared_ptr<ThreadPool> pool)
    : kernels_(kernels_of(isa)), pool_(std::move(pool)), scratch_(size_t(pool_->threads())) {}

void Sampler::sample(const std::vector<SampleRow>& rows) {
    int64_t bytes = 0;
    for (const SampleRow& row : rows) {
        const int64_t needed = kernels_.scratch_bytes(row);
        if (needed > bytes) bytes = needed;
    }
    for (Buffer& buffer : scratch_) buffer.reserve(bytes);
    pool_->run(int64_t(rows.size()), [&](int64_t item, int worker) {
        const FloatingPointGuard guard;
        kernels_.sample(rows[size_t(item)], scratch_[size_t(worker)].data());
    });
}

void Sampler::score(const std::vector<ScoreRow>& rows) {
    pool_->run(int64_t(rows.size()), [&](int64_t item, int) {
        const FloatingPointGuard guard;
        kernels_.score(rows[size_t(item)]);
    });
}

}  // namespace linnet
