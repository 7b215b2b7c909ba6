// All kernels for one instruction set; compiled once for each, see CMakeLists.txt.
#include "conv.h"
#include "scan.h"

namespace megabase {

namespace MB_SET {
namespace {

template <class T>
Functions<T> functions() {
    return {
        scan_forward_workspace<T>, scan_forward<T>, scan_backward_workspace<T>, scan_backward<T>,
        conv_forward<T>,           conv_backward<T>, exponentials<T>,           exponential_of<T>,
        lanes<T>,
    };
}

}  // namespace
}  // namespace MB_SET

#define MB_JOIN(a, b) a##b
#define MB_TABLE(set) MB_JOIN(set, _table)
#define MB_TEXT_OF(set) #set
#define MB_TEXT(set) MB_TEXT_OF(set)

const Table& MB_TABLE(MB_SET)() {
    static const Table table = {
        MB_TEXT(MB_SET), MB_SET::functions<float>(), MB_SET::functions<double>()
    };
    return table;
}

}  // namespace megabase
