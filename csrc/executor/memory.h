// SPDX-License-Identifier: Apache-2.0
// Memory aligned to 64 bytes whose pages are touched first by whoever uses them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace linnet {

class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t bytes) : bytes_(bytes) {
        if (bytes <= 0) return;
        data_ = static_cast<char*>(std::aligned_alloc(64, size_t((bytes + 63) / 64 * 64)));
        if (!data_) throw std::bad_alloc();
    }
    ~Buffer() { std::free(data_); }
    Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
        other.data_ = nullptr;
        other.bytes_ = 0;
    }
    Buffer& operator=(Buffer&& other) noexcept {
        char* data = data_;
        const int64_t bytes = bytes_;
        data_ = other.data_;
        bytes_ = other.bytes_;
        other.data_ = data;
        other.bytes_ = bytes;
        return *this;
    }
    char* data() const { return data_; }
    int64_t bytes() const { return bytes_; }
    // Grows to at least `bytes`; contents are lost when it does.
    void reserve(int64_t bytes) {
        if (bytes > bytes_) *this = Buffer(bytes);
    }

  private:
    char* data_ = nullptr;
    int64_t bytes_ = 0;
};

}  // namespace linnet
