// SPDX-License-Identifier: Apache-2.0
// The sampler of every tier this CPU has on random rows: what is drawn is allowed and likely enough, and nothing
// outside its arrays is touched (run under the sanitizers). tests/ops/test_sampling.py compares tokens with the
// specification.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "kernels/sampling/sampling_host.h"

using namespace linnet;

namespace {

std::mt19937_64 randomness(7);
int failures = 0;

int64_t pick(int64_t low, int64_t high) { return low + int64_t(randomness() % uint64_t(high - low + 1)); }
float uniform() { return float(randomness() % 100000) / 100000.0f; }

void fail(const std::string& tier, int trial, const char* what) {
    std::printf("FAIL %s trial %d: %s\n", tier.c_str(), trial, what);
    ++failures;
}

struct Case {
    std::vector<float> logits, other, bias_values;
    std::vector<int32_t> history, bias_ids, top_ids;
    std::vector<uint32_t> allowed;
    std::vector<float> top_values;
    SampleRow row;
    int32_t token = -2;
    float logprob = 0;
};

void make(Case& c) {
    const int64_t vocabulary = pick(1, 3000);
    const float spread = pick(0, 3) == 0 ? 0.0f : 6.0f * uniform();
    for (int64_t i = 0; i < vocabulary; ++i) c.logits.push_back(spread * (uniform() - 0.5f) * 4.0f);
    if (pick(0, 3) == 0) c.logits[size_t(pick(0, vocabulary - 1))] = -INFINITY;
    if (pick(0, 9) == 0) c.logits[size_t(pick(0, vocabulary - 1))] = INFINITY;
    if (pick(0, 9) == 0) c.logits[size_t(pick(0, vocabulary - 1))] = NAN;
    for (float value : c.logits) c.other.push_back(value + uniform());
    for (int64_t i = pick(0, 40); i > 0; --i) c.history.push_back(int32_t(pick(0, vocabulary - 1)));
    if (pick(0, 1) == 0) {
        c.bias_ids.push_back(int32_t(pick(0, vocabulary - 1)));
        c.bias_values.push_back(3.0f);
    }
    if (pick(0, 2) == 0)
        for (int64_t i = 0; i < (vocabulary + 31) / 32; ++i)
            c.allowed.push_back(pick(0, 2) == 0 ? uint32_t(randomness()) : pick(0, 1) == 0 ? 0 : ~0u);
    c.row.logits = c.logits.data();
    c.row.vocabulary = vocabulary;
    c.row.temperature = pick(0, 3) == 0 ? 0.0f : 0.1f + 2.0f * uniform();
    if (pick(0, 9) == 0) c.row.temperature = 1e-39f;
    c.row.top_k = pick(0, 1) == 0 ? 0 : int32_t(pick(1, 60));
    c.row.top_p = pick(0, 1) == 0 ? 1.0f : uniform();
    c.row.min_p = pick(0, 1) == 0 ? 0.0f : uniform();
    c.row.repetition_penalty = 0.5f + uniform();
    c.row.presence_penalty = uniform() - 0.5f;
    c.row.frequency_penalty = uniform() - 0.5f;
    c.row.seed = randomness();
    c.row.history = c.row.generated = c.history.data();
    c.row.history_count = c.row.generated_count = int64_t(c.history.size());
    c.row.bias_ids = c.bias_ids.data();
    c.row.bias_values = c.bias_values.data();
    c.row.bias_count = int64_t(c.bias_ids.size());
    c.row.allowed = c.allowed.empty() ? nullptr : c.allowed.data();
    c.row.top_logprobs = int32_t(pick(0, vocabulary < 20 ? vocabulary : 20));
    c.row.top_allowed = pick(0, 1) == 0;
    c.top_ids.resize(size_t(c.row.top_logprobs));
    c.top_values.resize(size_t(c.row.top_logprobs));
    c.row.top_ids = c.top_ids.data();
    c.row.top_values = c.top_values.data();
    c.row.token = &c.token;
    c.row.logprob = c.row.top_logprobs == 0 && pick(0, 1) == 0 ? nullptr : &c.logprob;
}

// What the likeliest tokens are sorted by: those that are not allowed come last where only the others are asked for.
float told(const Case& c, int32_t id) {
    const bool allowed = c.row.allowed == nullptr || (c.allowed[size_t(id / 32)] >> (id % 32) & 1) != 0;
    return allowed || !c.row.top_allowed ? c.logits[size_t(id)] : -std::numeric_limits<float>::infinity();
}

void check(const std::string& tier, int trial, const Case& c) {
    bool missing = false;
    for (float value : c.logits) missing = missing || std::isnan(value);
    if (missing) {
        if (c.token != -1) fail(tier, trial, "a token although a logit is not a number");
        return;
    }
    if (c.token < -1 || c.token >= c.row.vocabulary) return fail(tier, trial, "token out of range");
    if (c.token >= 0 && c.row.allowed != nullptr && (c.allowed[size_t(c.token / 32)] >> (c.token % 32) & 1) == 0)
        fail(tier, trial, "a token that is not allowed");
    for (size_t i = 1; i < c.top_values.size(); ++i) {
        const float before = told(c, c.top_ids[i - 1]), here = told(c, c.top_ids[i]);
        if (before < here || (before == here && c.top_ids[i - 1] >= c.top_ids[i]))
            fail(tier, trial, "top ids unsorted");
    }
}

}  // namespace

int main() {
    const char* set = std::getenv("LINNET_FUZZ_TRIALS");
    const int trials = set != nullptr ? std::atoi(set) : 100;
    const auto pool = std::make_shared<ThreadPool>(2);
    for (const std::string& tier : available_tiers()) {
        Sampler sampler(tier, pool);
        for (int trial = 0; trial < trials; ++trial) {
            std::vector<Case> cases(3);
            std::vector<SampleRow> rows;
            for (Case& c : cases) {
                make(c);
                rows.push_back(c.row);
            }
            sampler.sample(rows);
            for (const Case& c : cases) check(tier, trial, c);
            float logprob, kl;
            int32_t greedy, rank, other_greedy;
            const Case& c = cases[0];
            sampler.score({{c.logits.data(), c.other.data(), c.row.vocabulary, int32_t(pick(0, c.row.vocabulary - 1)),
                            &logprob, &greedy, &rank, &kl, &other_greedy}});
            if (greedy >= 0 && (rank < 0 || rank >= c.row.vocabulary || kl < 0))
                fail(tier, trial, "score out of range");
        }
    }
    std::printf("sampling: %d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
