// All kernels for one instruction set; compiled once for each, see CMakeLists.txt.
#include "conv.h"
#include "filter.h"
#include "mixer.h"
#include "mlp.h"
#include "scan_backward.h"
#include "spectrum.h"

namespace megabase {

namespace MB_SET {
namespace {

template <class P>
Blocked<typename P::Number> blocked() {
    return {
        mlp_weights_size<P>, mlp_pack<P>, mlp_forward_workspace<P>, mlp_backward_workspace<P>,
        mlp_forward<P>, mlp_backward<P>, mlp_sums<P>,

        mixer_weights_size<P>, mixer_pack<P>, mixer_workspace<P>, mixer_sums_size<P>,
        mixer_open<P>, mixer_gate<P>, mixer_close<P>, mixer_backward<P>, mixer_sums<P>,
    };
}

template <class T>
Blocked<T> half() {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == 4) return blocked<Half>();
#endif
    return {};
}

template <class T>
Functions<T> functions() {
    return {
        scan_forward_workspace<T>, scan_forward<T>, scan_backward_workspace<T>, scan_backward<T>,
        conv_forward<T>,           conv_backward<T>, exponentials<T>,           exponential_of<T>,
        lanes<T>,

        blocked<Full<T>>(), half<T>(),

        filter_weights_size<T>, filter_pack<T>, filter_workspace<T>, filter_forward<T>,
        filter_backward<T>, filter_sums<T>, sine_of<T>,

        spectrum_times<T>, spectrum_backward<T>, fold<T>, unfold<T>, letter_logits<T>, BLOCK_ROWS,
        PANEL<T>,
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
