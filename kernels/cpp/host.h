// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace megabase {

using Address = uintptr_t;  // of a contiguous array; 0 for none
using Addresses = std::vector<Address>;
using Numbers = std::vector<int64_t>;

// Elements of a part of a workspace, so that the next part is aligned too.
inline int64_t rounded(int64_t elements) { return (elements + 15) / 16 * 16; }

// The kernels in use.
const Table& table();

// Add the blocked operators to the module.
void add_blocked(nanobind::module_& m);

// Add the layer with packed weights to the module.
void add_layer(nanobind::module_& m);

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// Memory of one task, aligned for the widest vector.
template <class T>
class Workspace {
  public:
    explicit Workspace(int64_t elements) {
        const size_t bytes = (size_t(elements) * sizeof(T) + 63) / 64 * 64;
        data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64)));
        if (!data_) throw std::bad_alloc();
    }
    T* data() const { return data_.get(); }

  private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> data_;
};

}  // namespace megabase
