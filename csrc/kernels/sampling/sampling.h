// SPDX-License-Identifier: Apache-2.0
// Sampling and scoring of one row of logits; plain data, everything borrowed. backends/interface.py (SamplingBatch) and
// backends/reference/sampling.py define what is computed. Bits depend on the row and the tier alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tiers.h"

namespace linnet {

struct SampleRow {
    const float* logits = nullptr;  // [vocabulary]
    int64_t vocabulary = 0;
    float temperature = 0.0f;  // 0: greedy
    int32_t top_k = 0;         // 0: off
    float top_p = 1.0f;        // 1: off
    float min_p = 0.0f;        // 0: off
    float repetition_penalty = 1.0f;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    uint64_t seed = 0;
    int64_t position = 0;
    uint32_t purpose = 0;
    const int32_t* history = nullptr;  // ids in [0, vocabulary), checked by the caller
    int64_t history_count = 0;
    const int32_t* generated = nullptr;
    int64_t generated_count = 0;
    const int32_t* bias_ids = nullptr;
    const float* bias_values = nullptr;
    int64_t bias_count = 0;
    const uint32_t* allowed = nullptr;  // bit id % 32 of word id / 32; null: all
    int32_t top_logprobs = 0;           // <= vocabulary
    bool top_allowed = false;           // those of allowed tokens, and others at minus infinity where they are fewer

    int32_t* token = nullptr;    // -1: no usable distribution
    float* logprob = nullptr;    // of the raw distribution; null: not wanted, nor are any top_logprobs then
    int32_t* top_ids = nullptr;  // [top_logprobs], greatest first, ties to the lowest id
    float* top_values = nullptr;
};

struct ScoreRow {
    const float* logits = nullptr;
    const float* other = nullptr;  // the compared model's logits, or null
    int64_t vocabulary = 0;
    int32_t target = 0;

    float* logprob = nullptr;
    int32_t* greedy = nullptr;
    int32_t* rank = nullptr;  // tokens more likely than the target; of equal ones, those with a lower id
    float* kl = nullptr;      // KL(other || logits), only with other
    int32_t* other_greedy = nullptr;
};

struct SamplingKernels {
    int64_t (*scratch_bytes)(const SampleRow& row);  // 64-byte aligned; contents undefined
    void (*sample)(const SampleRow& row, void* scratch);
    void (*score)(const ScoreRow& row);
};

LINNET_TIERS(LINNET_DECLARE_TABLE, SamplingKernels, sampling_kernels)

}  // namespace linnet
