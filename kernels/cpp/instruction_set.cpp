// All kernels for one instruction set; compiled once for each, see CMakeLists.txt.
#include "conv.h"
#include "filter.h"
#include "mixer.h"
#include "mlp.h"
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

        mlp_weights_size<T>, mlp_pack<T>, mlp_forward_workspace<T>, mlp_backward_workspace<T>,
        mlp_forward<T>, mlp_backward<T>, mlp_sums<T>,

        mixer_weights_size<T>, mixer_pack<T>, mixer_workspace<T>, mixer_sums_size<T>,
        mixer_open<T>, mixer_close<T>, mixer_backward<T>, mixer_sums<T>,

        filter_weights_size<T>, filter_pack<T>, filter_workspace<T>, filter_forward<T>,
        filter_backward<T>, filter_sums<T>, sine_of<T>,

        spectrum_times<T>, spectrum_backward<T>, BLOCK_ROWS,
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
