// What the kernels of every instruction set have in common: their arguments and their table.
#pragma once

#include <cstdint>

namespace megabase {

// A matrix of rows for each sequence; the elements of a row lie beside one another. Strides are in
// elements and may be negative: a sequence is read against its direction by starting at its end.
template <class T>
struct Rows {
    T* data = nullptr;
    int64_t sequence = 0;
    int64_t row = 0;

    T* at(int64_t b, int64_t t) const { return data + b * sequence + t * row; }
    explicit operator bool() const { return data != nullptr; }
};

// Selective scan of `batch` sequences of `length` positions, `channels` with `states` each.
// A task is one sequence and some blocks of channels, a block as wide as a vector.
template <class T>
struct Scan {
    int64_t batch, length, channels, states;
    int64_t steps;   // positions between kept states
    bool softplus;
    Rows<const T> u, delta, B, C, z;           // z may be missing
    const T *A, *D, *bias, *initial;           // (E, N), (E,), (E,), (B, E, N); all but A may be missing
    Rows<T> y;
    T* final_state;                            // (B, E, N)
    T* kept;                                   // (B, tiles, N, E): the state that enters each tile

    // Backward only. Sums over positions come as one row for each sequence, those over channels
    // as one for each group of blocks.
    Rows<const T> dy;
    const T* dfinal;                           // (B, E, N); may be missing
    Rows<T> du, ddelta, dz;
    T *dA, *dD, *dbias, *dinitial;             // (B, E, N), (B, E), (B, E), (B, E, N)
    T *dB, *dC;                                // (groups, B, L, N)
};

// Causal convolution of every channel with its own taps, then SiLU.
template <class T>
struct Conv {
    int64_t batch, length, channels, taps;
    Rows<const T> x, past;                     // past: the taps - 1 rows before; zeros when missing
    const T *weight, *bias;                    // (E, taps), (E,); bias may be missing
    Rows<T> y;
    Rows<const T> dy;
    Rows<T> dx, dpast;
    T *dweight, *dbias;                        // (tasks, taps, E), (tasks, E)
};

// A LayerNorm of rows, or none when `weight` is missing; `bias` may be missing.
template <class T>
struct Norm {
    const T *weight, *bias;
    T eps;
};

// y = W2 gelu(W1 norm(x) + b1) + b2 for every row of x (rows, D).
template <class T>
struct Mlp {
    int64_t rows, width, inner;
    bool sums;                                 // whether the weights' gradients are wanted
    Norm<T> norm;
    const T *x, *w1, *b1, *w2, *b2;            // (rows, D), (E, D), (E,), (D, E), (D,)
    T* y;
    T* kept;                                   // W1 norm(x) + b1 block by block, N E numbers; may be missing
    const T* dy;
    T* dx;                                     // may be missing
    T *dw1, *db1, *dw2, *db2, *dweight, *dbias;
};

// The Hyena mixer but for its transforms.
template <class T>
struct Mixer {
    int64_t batch, length, width, taps, after;
    int64_t first, last;                               // the group of channels worked on
    bool sums;
    Norm<T> norm;
    const T *x, *w_in, *b_in, *w, *b, *w_out, *b_out;  // (B, L, D), (3D, D), (3D,), (3D, K), (3D,), (D, D), (D,)
    T *u, *g;                                          // (B, last - first, L)
    T* kept;                                           // (B, panels, 3, L, PANEL): gates and value before the short
                                                       // convolution; may be missing
    T* out;                                            // (B, L, D)
    const T* dy;
    T* dx;
    T *dw_in, *db_in, *dw, *db, *dw_out, *db_out, *dweight, *dbias;  // dw is (3, K, D)
};

constexpr int MAX_LAYERS = 8;

// k[c, m] = (last sin(...)) (exp(-rate t) + shift), see the operator implicit_filter.
template <class T>
struct Filter {
    int64_t lags, features, width, channels, layers;
    const T *z, *t, *freq;                     // (M, E), (M,), (W,)
    const T *weights[MAX_LAYERS], *biases[MAX_LAYERS], *last;  // (W, in), (W,), (C, W)
    const T* rate;                             // (C,), may be missing: no window
    T shift;
    T* k;                                      // (C, M)
    const T* dk;
    T* dz;                                     // may be missing
    T *dfreq, *dlast, *dweights[MAX_LAYERS], *dbiases[MAX_LAYERS];
};

// Blocked operators. Weights are packed once, into memory that all workers read; each worker has
// its own workspace, at whose start it leaves its sums.
template <class T>
struct Blocked {
    int64_t (*mlp_weights_size)(const Mlp<T>&, bool backward);
    void (*mlp_pack)(const Mlp<T>&, bool backward, T* weights);
    int64_t (*mlp_forward_workspace)(const Mlp<T>&);
    int64_t (*mlp_backward_workspace)(const Mlp<T>&);
    void (*mlp_forward)(const Mlp<T>&, T* weights, int64_t begin, int64_t end, T* work);
    void (*mlp_backward)(const Mlp<T>&, T* weights, int64_t begin, int64_t end, T* work);
    void (*mlp_sums)(const Mlp<T>&, int64_t workers, T* work, int64_t each);

    int64_t (*mixer_weights_size)(const Mixer<T>&, bool backward);
    void (*mixer_pack)(const Mixer<T>&, bool backward, T* weights);
    int64_t (*mixer_workspace)(const Mixer<T>&, bool backward);
    int64_t (*mixer_sums_size)(const Mixer<T>&);
    void (*mixer_open)(const Mixer<T>&, T* weights, int64_t b, int64_t t0, int64_t t1, bool backward, T* work);
    void (*mixer_gate)(const Mixer<T>&, T* weights, int64_t b, int64_t t0, int64_t t1, T* work);
    void (*mixer_close)(const Mixer<T>&, T* weights, int64_t b, int64_t t0, int64_t t1, T* work);
    void (*mixer_backward)(const Mixer<T>&, T* weights, int64_t b, int64_t t0, int64_t t1, T* work);
    void (*mixer_sums)(const Mixer<T>&, int64_t workers, T* work, int64_t each);
};

template <class T>
struct Functions {
    int64_t (*scan_forward_workspace)(const Scan<T>&, int64_t blocks);
    void (*scan_forward)(const Scan<T>&, int64_t b, int64_t first, int64_t last, T* work);
    int64_t (*scan_backward_workspace)(const Scan<T>&, int64_t blocks);
    void (*scan_backward)(const Scan<T>&, int64_t b, int64_t first, int64_t last, int64_t group, T* work);
    void (*conv_forward)(const Conv<T>&, int64_t b, int64_t begin, int64_t end);
    void (*conv_backward)(const Conv<T>&, int64_t b, int64_t begin, int64_t end, int64_t task);
    // The exponentials of a scan and nothing else: what it is measured against.
    T (*exponentials)(const T* step, const T* rate, int64_t positions, int64_t states);
    void (*exponential)(const T* x, T* y, int64_t count);
    int lanes;

    // How products are computed: with the numbers as they are, or rounded to bfloat16 with sums in
    // float. The latter may be missing: then its functions are.
    Blocked<T> full, half;

    int64_t (*filter_weights_size)(const Filter<T>&, bool backward);
    void (*filter_pack)(const Filter<T>&, bool backward, T* weights);
    int64_t (*filter_workspace)(const Filter<T>&, bool backward);
    void (*filter_forward)(const Filter<T>&, T* weights, int64_t begin, int64_t end, T* work);
    void (*filter_backward)(const Filter<T>&, T* weights, int64_t begin, int64_t end, T* work);
    void (*filter_sums)(const Filter<T>&, int64_t workers, T* work, int64_t each);
    void (*sine)(const T* x, T* y, int64_t count, bool cosine);

    void (*spectrum_times)(T* u, const T* k, int64_t frequencies);
    void (*spectrum_backward)(T* u, T* g, const T* k, T* dk, int64_t frequencies);
    void (*fold)(const T* u, int64_t length, const T* weights, int64_t half, int64_t begin, int64_t end, T* z);
    void (*unfold)(const T* z, const T* cyclic, const T* weights, int64_t half, int64_t begin, int64_t end, T* y, int64_t length);
    void (*letter_logits)(const Norm<T>&, const T* x, int64_t rows, int64_t width, const T* w, T* to);
    int64_t block_rows, panel;                 // rows of a block; groups of channels begin at multiples of a panel
};

struct Table {
    const char* name;
    Functions<float> single;
    Functions<double> twice;

    template <class T>
    const Functions<T>& of() const {
        if constexpr (sizeof(T) == 4)
            return single;
        else
            return twice;
    }
};

const Table& portable_table();
#if defined(MB_X86)
const Table& avx2_table();
const Table& avx512_table();
const Table& avx512bf16_table();
const Table& amx_table();
#endif

}  // namespace megabase
