// SPDX-License-Identifier: Apache-2.0
// Sampling and scoring of the rows of a step: a row per work item, scratch kept per worker.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor/memory.h"
#include "executor/threads.h"
#include "sampling.h"

namespace linnet {

class Sampler {
  public:
    // isa: a name of available_tiers(), or empty for the best. Throws std::invalid_argument.
    Sampler(const std::string& isa, std::shared_ptr<ThreadPool> pool);
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;

    // Every id and pointer of the rows is checked by the caller.
    void sample(const std::vector<SampleRow>& rows);
    void score(const std::vector<ScoreRow>& rows);

  private:
    const SamplingKernels& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    std::vector<Buffer> scratch_;
};

}  // namespace linnet
