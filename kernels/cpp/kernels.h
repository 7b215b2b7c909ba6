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
#endif

}  // namespace megabase
