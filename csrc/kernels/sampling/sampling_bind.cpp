// SPDX-License-Identifier: Apache-2.0
// The Python face of the sampler. Every row index and token id is checked here, before anything is computed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "sampling_host.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace linnet;

namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("sampling: " + what); }

void require_count(const char* name, size_t found, size_t wanted) {
    if (found != wanted)
        refuse(std::string(name) + " has " + std::to_string(found) + " entries, not " + std::to_string(wanted));
}

void require_ids(const char* name, const Vector<int32_t>& ids, int64_t bound) {
    for (size_t i = 0; i < ids.size(); ++i) {
        if (ids.data()[i] < 0 || ids.data()[i] >= bound)
            refuse(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(ids.data()[i]) +
                   ", outside [0, " + std::to_string(bound) + ")");
    }
}

// offsets [n + 1] into `size` elements, rising from 0 to size.
void require_offsets(const char* name, const Vector<int64_t>& offsets, size_t n, size_t size) {
    require_count(name, offsets.size(), n + 1);
    const int64_t* o = offsets.data();
    bool right = o[0] == 0 && o[n] == int64_t(size);
    for (size_t i = 0; i < n; ++i) right = right && o[i] <= o[i + 1];
    if (!right) refuse(std::string(name) + " must rise from 0 to " + std::to_string(size));
}

template <typename T>
nb::ndarray<nb::numpy, T> own(T* data, size_t rows, std::optional<size_t> columns = std::nullopt) {
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    const size_t shape[2] = {rows, columns.value_or(0)};
    return nb::ndarray<nb::numpy, T>(data, columns ? 2 : 1, shape, owner);
}

auto sample(Sampler& sampler, const Logits& logits, const Vector<int32_t>& rows, const Vector<float>& temperature,
            const Vector<int32_t>& top_k, const Vector<float>& top_p, const Vector<float>& min_p,
            const Vector<float>& repetition_penalty, const Vector<float>& presence_penalty,
            const Vector<float>& frequency_penalty, const Vector<uint64_t>& seed, const Vector<int64_t>& position,
            const Vector<int64_t>& history_offsets, const Vector<int32_t>& history_ids,
            const Vector<int64_t>& generated_offsets, const Vector<int32_t>& generated_ids,
            const Vector<int64_t>& bias_offsets, const Vector<int32_t>& bias_ids, const Vector<float>& bias_values,
            std::optional<int32_t> top_logprobs, const std::optional<Bits>& allowed,
            const std::optional<Vector<bool>>& top_allowed, uint32_t purpose) {
    const size_t n = rows.size();
    const int64_t vocabulary = int64_t(logits.shape(1));
    require_ids("rows", rows, int64_t(logits.shape(0)));
    require_count("temperature", temperature.size(), n);
    require_count("top_k", top_k.size(), n);
    require_count("top_p", top_p.size(), n);
    require_count("min_p", min_p.size(), n);
    require_count("repetition_penalty", repetition_penalty.size(), n);
    require_count("presence_penalty", presence_penalty.size(), n);
    require_count("frequency_penalty", frequency_penalty.size(), n);
    require_count("seed", seed.size(), n);
    require_count("position", position.size(), n);
    require_offsets("history_offsets", history_offsets, n, history_ids.size());
    require_offsets("generated_offsets", generated_offsets, n, generated_ids.size());
    require_offsets("bias_offsets", bias_offsets, n, bias_ids.size());
    require_count("bias_values", bias_values.size(), bias_ids.size());
    require_ids("history_ids", history_ids, vocabulary);
    require_ids("generated_ids", generated_ids, vocabulary);
    require_ids("bias_ids", bias_ids, vocabulary);
    if (vocabulary < 1) refuse("the logits have no columns");
    const int32_t most = top_logprobs.value_or(0);
    if (most < 0 || most > vocabulary)
        refuse("top_logprobs must lie in 0 .. " + std::to_string(vocabulary) + ", not " + std::to_string(most));
    if (allowed && (allowed->shape(0) != n || int64_t(allowed->shape(1)) != (vocabulary + 31) / 32))
        refuse("allowed must be [" + std::to_string(n) + ", " + std::to_string((vocabulary + 31) / 32) + "]");

    if (top_allowed) require_count("top_allowed", top_allowed->size(), n);

    const size_t k = size_t(most);
    auto tokens = own(new int32_t[n], n);
    auto logprobs = own(new float[n], n);
    auto top_ids = own(new int32_t[n * k], n, k);
    auto top_values = own(new float[n * k], n, k);
    std::vector<SampleRow> calls(n);
    for (size_t i = 0; i < n; ++i) {
        SampleRow& row = calls[i];
        row.logits = logits.data() + int64_t(rows.data()[i]) * vocabulary;
        row.vocabulary = vocabulary;
        row.temperature = temperature.data()[i];
        row.top_k = top_k.data()[i];
        row.top_p = top_p.data()[i];
        row.min_p = min_p.data()[i];
        row.repetition_penalty = repetition_penalty.data()[i];
        row.presence_penalty = presence_penalty.data()[i];
        row.frequency_penalty = frequency_penalty.data()[i];
        row.seed = seed.data()[i];
        row.position = position.data()[i];
        row.purpose = purpose;
        row.history = history_ids.data() + history_offsets.data()[i];
        row.history_count = history_offsets.data()[i + 1] - history_offsets.data()[i];
        row.generated = generated_ids.data() + generated_offsets.data()[i];
        row.generated_count = generated_offsets.data()[i + 1] - generated_offsets.data()[i];
        row.bias_ids = bias_ids.data() + bias_offsets.data()[i];
        row.bias_values = bias_values.data() + bias_offsets.data()[i];
        row.bias_count = bias_offsets.data()[i + 1] - bias_offsets.data()[i];
        row.allowed = allowed ? allowed->data() + i * allowed->shape(1) : nullptr;
        row.top_logprobs = most;
        row.top_allowed = top_allowed && top_allowed->data()[i];
        row.token = tokens.data() + i;
        logprobs.data()[i] = __builtin_nanf("");
        row.logprob = top_logprobs ? logprobs.data() + i : nullptr;
        row.top_ids = top_ids.data() + i * k;
        row.top_values = top_values.data() + i * k;
    }
    {
        nb::gil_scoped_release release;
        sampler.sample(calls);
    }
    return std::make_tuple(tokens, logprobs, top_ids, top_values);
}

auto score(Sampler& sampler, const Logits& logits, const Vector<int32_t>& rows, const Vector<int32_t>& targets,
           const std::optional<Logits>& other) {
    const size_t n = rows.size();
    const int64_t vocabulary = int64_t(logits.shape(1));
    require_ids("rows", rows, int64_t(logits.shape(0)));
    require_count("targets", targets.size(), n);
    require_ids("targets", targets, vocabulary);
    if (other && (other->shape(0) != logits.shape(0) || other->shape(1) != logits.shape(1)))
        refuse("the compared model's logits have another shape");
    auto logprobs = own(new float[n], n);
    auto greedy = own(new int32_t[n], n);
    auto ranks = own(new int32_t[n], n);
    auto kl = own(new float[n], n);
    auto other_greedy = own(new int32_t[n], n);
    std::vector<ScoreRow> calls(n);
    for (size_t i = 0; i < n; ++i) {
        ScoreRow& row = calls[i];
        row.logits = logits.data() + int64_t(rows.data()[i]) * vocabulary;
        row.other = other ? other->data() + int64_t(rows.data()[i]) * vocabulary : nullptr;
        row.vocabulary = vocabulary;
        row.target = targets.data()[i];
        row.logprob = logprobs.data() + i;
        row.greedy = greedy.data() + i;
        row.rank = ranks.data() + i;
        row.kl = kl.data() + i;
        row.other_greedy = other_greedy.data() + i;
    }
    {
        nb::gil_scoped_release release;
        sampler.score(calls);
    }
    return std::make_tuple(logprobs, greedy, ranks, kl, other_greedy);
}

}  // namespace

void bind_sampling(nb::module_& module) {
    nb::class_<Sampler>(module, "Sampler",
                        "Samples and scores rows of logits; the arguments are SamplingBatch's fields.")
        .def(nb::init<const std::string&, std::shared_ptr<ThreadPool>>(), "isa"_a, "pool"_a)
        .def("sample", &sample, "logits"_a.noconvert(), "rows"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
             "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "seed"_a, "position"_a,
             "history_offsets"_a, "history_ids"_a, "generated_offsets"_a, "generated_ids"_a, "bias_offsets"_a,
             "bias_ids"_a, "bias_values"_a, "top_logprobs"_a.none(), "allowed"_a.none(), "top_allowed"_a.none(),
             "purpose"_a = 0, "(token_ids, logprobs, top_ids, top_logprobs) as backends.interface.SampleResult.")
        .def("score", &score, "logits"_a.noconvert(), "rows"_a, "targets"_a, "other"_a.noconvert().none(),
             "(logprobs, greedy, ranks, kl, other_greedy) as backends.interface.Scores; without other the last two are "
             "undefined.");
}
