// What the files of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace megabase {

// Arrays come by the DLPack protocol, which says of each where it is, its shape, strides and dtype.
using Array = nanobind::ndarray<nanobind::device::cpu>;
using Given = std::optional<Array>;
using Arrays = std::vector<Given>;
using Numbers = std::vector<int64_t>;
using Shape = std::initializer_list<int64_t>;

enum class Kind { REAL, COMPLEX };  // COMPLEX: pairs of T
enum class Want { ALWAYS, MAYBE };  // MAYBE: the array may be missing

inline std::string text_of(const int64_t* begin, size_t count) {
    std::string text = "(";
    for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(begin[i]);
    return text + (count == 1 ? ",)" : ")");
}

inline void expect(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

// Checks dtype and shape of an array. T is float, double or unsigned char.
template <class T>
void check(const Array& array, const char* name, Shape shape, Kind kind = Kind::REAL) {
    using Code = nanobind::dlpack::dtype_code;
    using Plain = std::remove_const_t<T>;
    const bool byte = std::is_same_v<Plain, uint8_t>, pairs = kind == Kind::COMPLEX;
    const Code code = byte ? Code::UInt : (pairs ? Code::Complex : Code::Float);
    const size_t bits = 8 * sizeof(Plain) * (pairs ? 2 : 1);
    const auto dtype = array.dtype();
    bool fits = dtype.code == uint8_t(code) && dtype.bits == bits && dtype.lanes == 1;
    if (!fits)
        throw std::invalid_argument(
            std::string(name) + " must be of " + (byte ? "uint" : (pairs ? "complex" : "float")) +
            std::to_string(bits)
        );
    std::vector<int64_t> found;
    for (size_t i = 0; i < array.ndim(); ++i) found.push_back(int64_t(array.shape(i)));
    if (found != std::vector<int64_t>(shape))
        throw std::invalid_argument(
            std::string(name) + " must have shape " + text_of(shape.begin(), shape.size()) +
            ", found " + text_of(found.data(), found.size())
        );
}

// Whether an array is there; throws where one that must be is not.
inline bool there(const Given& given, const char* name, Want want) {
    if (given) return true;
    if (want == Want::ALWAYS) throw std::invalid_argument(std::string(name) + " is missing");
    return false;
}

// The elements of an array without gaps; null for one that is missing.
template <class T>
T* pointer(
    const Given& given, const char* name, Shape shape, Want want = Want::ALWAYS,
    Kind kind = Kind::REAL
) {
    if (!there(given, name, want)) return nullptr;
    check<T>(*given, name, shape, kind);
    int64_t next = 1;
    bool dense = true;
    for (size_t i = given->ndim(); i-- > 0; next *= int64_t(given->shape(i)))
        dense &= given->shape(i) == 1 || given->stride(i) == next;
    if (!dense && given->size())
        throw std::invalid_argument(std::string(name) + " must be contiguous");
    return static_cast<T*>(given->data());
}

// An array (batch, length, width) whose rows have their elements side by side.
template <class T>
Rows<T> rows(
    const Given& given, const char* name, int64_t batch, int64_t length, int64_t width,
    bool against, Want want = Want::ALWAYS
) {
    Rows<T> result;
    if (!there(given, name, want)) return result;
    check<T>(*given, name, {batch, length, width});
    if (width > 1 && given->size() && given->stride(2) != 1)
        throw std::invalid_argument(std::string(name) + " must have its last axis side by side");
    result.data = static_cast<T*>(given->data());
    result.sequence = given->stride(0), result.row = given->stride(1);
    if (against && length > 0) {
        result.data += (length - 1) * result.row;
        result.row = -result.row;
    }
    return result;
}

inline int at_least_one(int threads) { return threads > 1 ? threads : 1; }

// Elements of a part of a workspace, so that the next part is aligned too.
inline int64_t rounded(int64_t elements) { return (elements + 15) / 16 * 16; }

// The kernels in use.
const Table& table();

// Add the blocked operators to the module.
void add_blocked(nanobind::module_& m);

// Add the layer with packed weights to the module.
void add_layer(nanobind::module_& m);

// Memory of one task, aligned for the widest vector.
template <class T>
class Workspace {
  public:
    explicit Workspace(int64_t elements) {
        if (elements < 0 || elements > (int64_t(1) << 58) / int64_t(sizeof(T))) throw std::bad_alloc();
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
