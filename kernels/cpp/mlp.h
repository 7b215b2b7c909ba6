// LayerNorm and MLP with GELU in its tanh form, block of rows by block of rows. Nothing as wide as
// the inner layer leaves the cache; the backward pass computes it again.
#pragma once

#include "rows.h"

namespace megabase {
namespace MB_SET {

template <class T>
constexpr int64_t MLP_INNER = 2 * PANEL<T>;  // inner columns worked on at a time

// a s(a (c + d a^2)) with the logistic function s is GELU in its tanh form.
template <class T>
constexpr T GELU_C = T(1.5957691216057308);
template <class T>
constexpr T GELU_D = T(0.071354816272600291);

template <class T>
MB_INLINE Vec<T> gelu(Vec<T> a) {
    return a * sigmoid<T>(a * (GELU_C<T> + GELU_D<T> * a * a));
}

template <class T>
MB_INLINE Vec<T> gelu_with_slope(Vec<T> a, Vec<T>& slope) {
    const Vec<T> square = a * a;
    const Vec<T> s = sigmoid<T>(a * (GELU_C<T> + GELU_D<T> * square));
    slope = s + a * s * (T(1) - s) * (GELU_C<T> + T(3) * GELU_D<T> * square);
    return a * s;
}

// The weights in panels, the way each product reads them.
template <class T>
struct MlpWeights {
    T *first, *second, *b1, *b2;   // (D, E), (E, D), (E), (D)
    T *first_back, *second_back;   // (E, D), (D, E); backward only

    MlpWeights(const Mlp<T>& p, Arena<T>& arena, bool backward) {
        first = arena.take(packed_size<T>(p.width, p.inner));
        b1 = arena.take(padded<T>(p.inner));
        second = backward ? nullptr : arena.take(packed_size<T>(p.inner, p.width));
        b2 = arena.take(padded<T>(p.width));
        first_back = backward ? arena.take(packed_size<T>(p.inner, p.width)) : nullptr;
        second_back = backward ? arena.take(packed_size<T>(p.width, p.inner)) : nullptr;
    }
    void fill(const Mlp<T>& p) const {
        const int64_t D = p.width, E = p.inner;
        pack<T>(p.w1, 1, D, D, E, first);
        pack<T>(p.b1, 0, 1, 1, E, b1);
        pack<T>(p.b2, 0, 1, 1, D, b2);
        if (second) pack<T>(p.w2, 1, E, E, D, second);
        if (first_back) pack<T>(p.w1, D, 1, E, D, first_back);
        if (second_back) pack<T>(p.w2, E, 1, D, E, second_back);
    }
};

template <class T>
struct MlpForwardWork {
    T *h, *a, *y;
    MlpForwardWork(const Mlp<T>& p, Arena<T>& arena) {
        h = arena.take(BLOCK_ROWS * padded<T>(p.width));
        a = arena.take(BLOCK_ROWS * MLP_INNER<T>);
        y = arena.take(BLOCK_ROWS * padded<T>(p.width));
    }
};

// Sums over rows of one worker, and its block.
template <class T>
struct MlpBackwardWork {
    T *dw1, *dw2, *db1, *db2, *dweight, *dbias;
    T *h, *dy, *a, *da, *dh;
    int64_t sums = 0;
    MlpBackwardWork(const Mlp<T>& p, Arena<T>& arena) {
        const int64_t D = padded<T>(p.width), E = padded<T>(p.inner);
        dw1 = arena.take(p.inner * D), dw2 = arena.take(p.width * E);
        db1 = arena.take(E), db2 = arena.take(D), dweight = arena.take(D), dbias = arena.take(D);
        sums = arena.used();
        h = arena.take(BLOCK_ROWS * D), dy = arena.take(BLOCK_ROWS * D), dh = arena.take(BLOCK_ROWS * D);
        a = arena.take(BLOCK_ROWS * MLP_INNER<T>), da = arena.take(BLOCK_ROWS * MLP_INNER<T>);
    }
};

template <class T>
int64_t mlp_weights_size(const Mlp<T>& p, bool backward) {
    Arena<T> arena(nullptr);
    MlpWeights<T> weights(p, arena, backward);
    return arena.used();
}

template <class T>
void mlp_pack(const Mlp<T>& p, bool backward, T* memory) {
    Arena<T> arena(memory);
    MlpWeights<T>(p, arena, backward).fill(p);
}

template <class T>
int64_t mlp_forward_workspace(const Mlp<T>& p) {
    Arena<T> arena(nullptr);
    MlpForwardWork<T> work(p, arena);
    return arena.used();
}

template <class T>
int64_t mlp_backward_workspace(const Mlp<T>& p) {
    Arena<T> arena(nullptr);
    MlpBackwardWork<T> work(p, arena);
    return arena.used();
}

template <class T>
void mlp_forward(const Mlp<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MlpWeights<T> w(p, of_weights, false);
    const MlpForwardWork<T> k(p, arena);
    const int64_t D = p.width, E = p.inner, pitch = padded<T>(D);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        normalise<T>(p.norm, p.x + at * D, D, rows, D, k.h, pitch);
        for (int64_t e = 0; e < E; e += MLP_INNER<T>) {
            const int64_t some = E - e < MLP_INNER<T> ? E - e : MLP_INNER<T>;
            const int64_t wide = padded<T>(some);
            multiply<T>(
                rows, wide, D, {k.h, pitch, 1}, packed<T>(w.first + e * D, D), k.a, wide,
                {false, w.b1 + e}
            );
            for (int64_t i = 0; i < rows * wide; i += W) store<T>(k.a + i, gelu<T>(load<T>(k.a + i)));
            const Right<T> second{w.second + e * PANEL<T>, PANEL<T>, E * PANEL<T>};
            multiply<T>(
                rows, pitch, some, {k.a, wide, 1}, second, k.y, pitch, {e > 0, e ? nullptr : w.b2}
            );
        }
        for (int64_t r = 0; r < rows; ++r)
            memcpy(p.y + (at + r) * D, k.y + r * pitch, size_t(D) * sizeof(T));
    }
}

// The sums over the rows from `begin` to `end` are left at the start of `memory`.
template <class T>
void mlp_backward(const Mlp<T>& p, T* packed_weights, int64_t begin, int64_t end, T* memory) {
    constexpr int W = lanes<T>;
    Arena<T> of_weights(packed_weights), arena(memory);
    const MlpWeights<T> w(p, of_weights, true);
    const MlpBackwardWork<T> k(p, arena);
    const int64_t D = p.width, E = p.inner, pitch = padded<T>(D), inner = padded<T>(E);
    clear(memory, k.sums);
    for (int64_t at = begin; at < end; at += BLOCK_ROWS) {
        const int64_t rows = end - at < BLOCK_ROWS ? end - at : BLOCK_ROWS;
        normalise<T>(p.norm, p.x + at * D, D, rows, D, k.h, pitch);
        copy_rows<T>(p.dy + at * D, D, rows, D, k.dy, pitch);
        if (p.sums) add_rows<T>(k.dy, pitch, rows, pitch, k.db2);
        for (int64_t e = 0; e < E; e += MLP_INNER<T>) {
            const int64_t some = E - e < MLP_INNER<T> ? E - e : MLP_INNER<T>;
            const int64_t wide = padded<T>(some);
            multiply<T>(
                rows, wide, D, {k.h, pitch, 1}, packed<T>(w.first + e * D, D), k.a, wide,
                {false, w.b1 + e}
            );
            multiply<T>(
                rows, wide, D, {k.dy, pitch, 1}, packed<T>(w.second_back + e * D, D), k.da, wide,
                {false, nullptr}
            );
            for (int64_t i = 0; i < wide; i += W) {
                Vec<T> total = load<T>(k.db1 + e + i);
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t here = r * wide + i;
                    Vec<T> slope;
                    store<T>(k.a + here, gelu_with_slope<T>(load<T>(k.a + here), slope));
                    slope *= load<T>(k.da + here);
                    total += slope;
                    store<T>(k.da + here, slope);
                }
                store<T>(k.db1 + e + i, total);
            }
            if (p.sums) {
                multiply<T>(
                    D, wide, rows, {k.dy, 1, pitch}, {k.a, wide, PANEL<T>}, k.dw2 + e, inner,
                    {true, nullptr}
                );
                multiply<T>(
                    some, pitch, rows, {k.da, 1, wide}, {k.h, pitch, PANEL<T>}, k.dw1 + e * pitch,
                    pitch, {true, nullptr}
                );
            }
            const Right<T> back{w.first_back + e * PANEL<T>, PANEL<T>, E * PANEL<T>};
            multiply<T>(rows, pitch, some, {k.da, wide, 1}, back, k.dh, pitch, {e > 0, nullptr});
        }
        normalise_backward<T>(
            p.norm, p.x + at * D, D, k.dh, pitch, rows, D, p.dx ? p.dx + at * D : nullptr, D,
            p.sums ? k.dweight : nullptr, p.sums ? k.dbias : nullptr
        );
    }
}

// Add the sums of all workers, whose memories lie `each` apart, in their order.
template <class T>
void mlp_sums(const Mlp<T>& p, int64_t workers, T* memory, int64_t each) {
    for (int64_t one = 0; one < workers; ++one) {
        Arena<T> arena(memory + one * each);
        const MlpBackwardWork<T> k(p, arena);
        const int64_t D = p.width, E = p.inner, pitch = padded<T>(D), inner = padded<T>(E);
        add_matrix<T>(k.dw1, pitch, E, D, p.dw1, one > 0);
        add_matrix<T>(k.dw2, inner, D, E, p.dw2, one > 0);
        add_matrix<T>(k.db1, inner, 1, E, p.db1, one > 0);
        add_matrix<T>(k.db2, pitch, 1, D, p.db2, one > 0);
        add_matrix<T>(k.dweight, pitch, 1, D, p.dweight, one > 0);
        add_matrix<T>(k.dbias, pitch, 1, D, p.dbias, one > 0);
    }
}

}  // namespace MB_SET
}  // namespace megabase
