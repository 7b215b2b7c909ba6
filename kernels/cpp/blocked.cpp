// The blocked operators in Python: arguments by address, and a share of the blocks for each worker.
//
// A worker's share is fixed by the number of workers, and sums are added in the order of workers:
// the same inputs and the same number of threads give the same bits.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

template <class T>
T* take(const Addresses& addresses, size_t& at) {
    if (at >= addresses.size()) throw std::invalid_argument("too few addresses");
    return pointer<T>(addresses[at++]);
}

void expect(const Numbers& sizes, size_t count) {
    if (sizes.size() != count) throw std::invalid_argument("wrong number of sizes");
}

// Weights of all workers and a workspace for each.
template <class T>
struct Memory {
    int64_t workers, each;
    Workspace<T> weights, work;

    Memory(int64_t blocks, int threads, int64_t weights_size, int64_t each_size)
        : workers(blocks < threads ? (blocks > 0 ? blocks : 1) : threads),
          each(rounded(each_size)),
          weights(weights_size),
          work(each * workers) {}
    T* of(int64_t worker) const { return work.data() + worker * each; }

    template <class Function>
    void run(int64_t blocks, const Function& function) const {
        parallel_for(workers, int(workers), [&](int64_t worker) {
            function(blocks * worker / workers, blocks * (worker + 1) / workers, of(worker));
        });
    }
};

template <class T>
Norm<T> norm_of(const Addresses& a, size_t& at, double eps) {
    const T* weight = take<const T>(a, at);
    const T* bias = take<const T>(a, at);
    return {weight, bias, T(eps)};
}

int64_t blocks_of(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

template <class T>
const Blocked<T>& products(bool half) {
    const Functions<T>& f = table().of<T>();
    if (half && !f.half.mlp_pack)
        throw std::invalid_argument("no products in bfloat16 with this instruction set");
    return half ? f.half : f.full;
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// sizes: rows, width, inner, sums. addresses: norm weight, norm bias, x, w1, b1, w2, b2, then y; or
// dy, dx, dw1, db1, dw2, db2, dweight, dbias.
template <class T>
void mlp_as(
    const Numbers& sizes, double eps, const Addresses& a, bool half, bool backward, int threads
) {
    expect(sizes, 4);
    size_t at = 0;
    Mlp<T> p{};
    p.rows = sizes[0], p.width = sizes[1], p.inner = sizes[2], p.sums = sizes[3] != 0;
    p.norm = norm_of<T>(a, at, eps);
    for (const T** input : {&p.x, &p.w1, &p.b1, &p.w2, &p.b2}) *input = take<const T>(a, at);
    if (backward) {
        p.dy = take<const T>(a, at);
        for (T** out : {&p.dx, &p.dw1, &p.db1, &p.dw2, &p.db2, &p.dweight, &p.dbias})
            *out = take<T>(a, at);
    } else {
        p.y = take<T>(a, at);
    }
    const int64_t rows = table().of<T>().block_rows;
    const Blocked<T>& f = products<T>(half);
    const int64_t blocks = blocks_of(p.rows, rows);
    const Memory<T> memory(
        blocks, threads, f.mlp_weights_size(p, backward),
        backward ? f.mlp_backward_workspace(p) : f.mlp_forward_workspace(p)
    );
    f.mlp_pack(p, backward, memory.weights.data());
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        const int64_t begin = first * rows, end = least(last * rows, p.rows);
        (backward ? f.mlp_backward : f.mlp_forward)(p, memory.weights.data(), begin, end, work);
    });
    if (backward && p.sums) f.mlp_sums(p, memory.workers, memory.work.data(), memory.each);
}

enum Pass { OPEN, GATE, CLOSE, OPEN_BACKWARD, BACKWARD };

// sizes: batch, length, width, taps, after, first, last, sums. addresses: norm weight, norm bias, x, w_in, b_in,
// w, b, w_out, b_out, u, then out; or g, dy for the first half of the backward pass, and
// after them dx, dw_in, db_in, dw, db, dw_out, db_out, dweight, dbias for the second.
template <class T>
void mixer_as(
    const Numbers& sizes, double eps, const Addresses& a, bool half, int pass, int threads
) {
    expect(sizes, 8);
    size_t at = 0;
    Mixer<T> m{};
    m.batch = sizes[0], m.length = sizes[1], m.width = sizes[2], m.taps = sizes[3];
    m.after = sizes[4], m.first = sizes[5], m.last = sizes[6], m.sums = sizes[7] != 0;
    m.norm = norm_of<T>(a, at, eps);
    for (const T** input : {&m.x, &m.w_in, &m.b_in, &m.w, &m.b, &m.w_out, &m.b_out})
        *input = take<const T>(a, at);
    m.u = take<T>(a, at);
    const bool backward = pass == OPEN_BACKWARD || pass == BACKWARD;
    if (backward) {
        m.g = take<T>(a, at);
        m.dy = take<const T>(a, at);
    } else {
        m.out = take<T>(a, at);
    }
    if (pass == BACKWARD)
        for (T** out : {&m.dx, &m.dw_in, &m.db_in, &m.dw, &m.db, &m.dw_out, &m.db_out, &m.dweight,
                        &m.dbias})
            *out = take<T>(a, at);
    const int64_t rows = table().of<T>().block_rows;
    const Blocked<T>& f = products<T>(half);
    const int64_t parts = blocks_of(m.length, rows), blocks = m.batch * parts;
    const Memory<T> memory(
        blocks, threads, f.mixer_weights_size(m, backward), f.mixer_workspace(m, backward)
    );
    f.mixer_pack(m, backward, memory.weights.data());
    T* const weights = memory.weights.data();
    const int64_t sums = pass == BACKWARD ? f.mixer_sums_size(m) : 0;
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        for (int64_t i = 0; i < sums; ++i) work[i] = T(0);
        for (int64_t block = first; block < last; ++block) {
            const int64_t b = block / parts, t0 = block % parts * rows;
            const int64_t t1 = least(t0 + rows, m.length);
            if (pass == GATE)
                f.mixer_gate(m, weights, b, t0, t1, work);
            else if (pass == CLOSE)
                f.mixer_close(m, weights, b, t0, t1, work);
            else if (pass == BACKWARD)
                f.mixer_backward(m, weights, b, t0, t1, work);
            else
                f.mixer_open(m, weights, b, t0, t1, backward, work);
        }
    });
    if (pass == BACKWARD && m.sums)
        f.mixer_sums(m, memory.workers, memory.work.data(), memory.each);
}

// sizes: lags, features, width, channels, layers. addresses: z, t, freq, rate, last, k or dk, then
// the weights and the biases of the layers; backward also dz, dfreq, dlast and the gradients of
// weights and biases.
template <class T>
void filter_as(const Numbers& sizes, double shift, const Addresses& a, bool backward, int threads) {
    expect(sizes, 5);
    size_t at = 0;
    Filter<T> p{};
    p.lags = sizes[0], p.features = sizes[1], p.width = sizes[2], p.channels = sizes[3];
    p.layers = sizes[4], p.shift = T(shift);
    if (p.layers < 1 || p.layers > MAX_LAYERS) throw std::invalid_argument("too many layers");
    for (const T** input : {&p.z, &p.t, &p.freq, &p.rate, &p.last}) *input = take<const T>(a, at);
    (backward ? const_cast<T*&>(p.dk) : p.k) = take<T>(a, at);
    for (int64_t i = 0; i < p.layers; ++i) p.weights[i] = take<const T>(a, at);
    for (int64_t i = 0; i < p.layers; ++i) p.biases[i] = take<const T>(a, at);
    if (backward) {
        for (T** out : {&p.dz, &p.dfreq, &p.dlast}) *out = take<T>(a, at);
        for (int64_t i = 0; i < p.layers; ++i) p.dweights[i] = take<T>(a, at);
        for (int64_t i = 0; i < p.layers; ++i) p.dbiases[i] = take<T>(a, at);
    }
    const Functions<T>& f = table().of<T>();
    const int64_t blocks = blocks_of(p.lags, f.block_rows);
    const Memory<T> memory(
        blocks, threads, f.filter_weights_size(p, backward), f.filter_workspace(p, backward)
    );
    f.filter_pack(p, backward, memory.weights.data());
    memory.run(blocks, [&](int64_t first, int64_t last, T* work) {
        const int64_t begin = first * f.block_rows, end = least(last * f.block_rows, p.lags);
        (backward ? f.filter_backward : f.filter_forward)(
            p, memory.weights.data(), begin, end, work
        );
    });
    if (backward) f.filter_sums(p, memory.workers, memory.work.data(), memory.each);
}

// Spectra as (rows, channels, frequencies) pairs of numbers without gaps, of the filter as
// (channels, frequencies).
template <class T>
void spectra_as(const Numbers& sizes, Address u, Address g, Address k, Address dk, int threads) {
    expect(sizes, 3);
    const int64_t rows = sizes[0], channels = sizes[1], frequencies = sizes[2];
    const int64_t row = 2 * frequencies;
    const Functions<T>& f = table().of<T>();
    parallel_for(channels, threads, [&](int64_t c) {
        for (int64_t b = 0; b < rows; ++b) {
            T* const one = pointer<T>(u) + (b * channels + c) * row;
            const T* const filter = pointer<const T>(k) + c * row;
            if (!g) {
                f.spectrum_times(one, filter, frequencies);
                continue;
            }
            T* const sums = dk ? pointer<T>(dk) + c * row : nullptr;
            f.spectrum_backward(
                one, pointer<T>(g) + (b * channels + c) * row, filter, sums, frequencies
            );
        }
    });
}

// Rows of `length` numbers into rows of `half` pairs, or back into them with the rows of 2 half numbers
// that the cyclic product gave.
template <class T>
void fold_as(
    const Numbers& sizes, Address u, Address weights, Address z, Address cyclic, bool back, int threads
) {
    expect(sizes, 3);
    const int64_t rows = sizes[0], length = sizes[1], half = sizes[2], piece = 1 << 14;
    const int64_t pieces = (half + piece - 1) / piece;
    const Functions<T>& f = table().of<T>();
    const T* const w = pointer<const T>(weights);
    parallel_for(rows * pieces, threads, [&](int64_t task) {
        const int64_t row = task / pieces, begin = task % pieces * piece;
        const int64_t end = least(begin + piece, half);
        T* const one = pointer<T>(u) + row * length;
        T* const pairs = pointer<T>(z) + row * 2 * half;
        if (back)
            f.unfold(
                pairs, pointer<const T>(cyclic) + row * 2 * half, w, half, begin, end, one, length
            );
        else
            f.fold(one, length, w, half, begin, end, pairs);
    });
}

}  // namespace

void add_blocked(nb::module_& m) {
    m.def("panel", [](bool twice) { return twice ? table().twice.panel : table().single.panel; }, "double"_a);
    m.def("half_products", [] { return table().single.half.mlp_pack != nullptr; });
    m.def(
        "mlp",
        [](bool twice, Numbers sizes, double eps, Addresses addresses, bool half, bool backward,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? mlp_as<double> : mlp_as<float>)(sizes, eps, addresses, half, backward, threads);
        },
        "double"_a, "sizes"_a, "eps"_a, "addresses"_a, "half"_a, "backward"_a, "threads"_a
    );
    m.def(
        "mixer",
        [](bool twice, Numbers sizes, double eps, Addresses addresses, bool half, int pass,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? mixer_as<double> : mixer_as<float>)(sizes, eps, addresses, half, pass, threads);
        },
        "double"_a, "sizes"_a, "eps"_a, "addresses"_a, "half"_a, "pass"_a, "threads"_a
    );
    m.def(
        "filter",
        [](bool twice, Numbers sizes, double shift, Addresses addresses, bool backward, int threads) {
            nb::gil_scoped_release release;
            (twice ? filter_as<double> : filter_as<float>)(
                sizes, shift, addresses, backward, threads
            );
        },
        "double"_a, "sizes"_a, "shift"_a, "addresses"_a, "backward"_a, "threads"_a
    );
    m.def(
        "spectra",
        [](bool twice, Numbers sizes, Address u, Address g, Address k, Address dk, int threads) {
            nb::gil_scoped_release release;
            (twice ? spectra_as<double> : spectra_as<float>)(sizes, u, g, k, dk, threads);
        },
        "double"_a, "sizes"_a, "u"_a, "g"_a, "k"_a, "dk"_a, "threads"_a
    );
    m.def(
        "fold",
        [](bool twice, Numbers sizes, Address u, Address weights, Address z, int threads) {
            nb::gil_scoped_release release;
            (twice ? fold_as<double> : fold_as<float>)(sizes, u, weights, z, 0, false, threads);
        },
        "double"_a, "sizes"_a, "u"_a, "weights"_a, "z"_a, "threads"_a
    );
    m.def(
        "unfold",
        [](bool twice, Numbers sizes, Address z, Address cyclic, Address weights, Address u,
           int threads) {
            nb::gil_scoped_release release;
            (twice ? fold_as<double> : fold_as<float>)(sizes, u, weights, z, cyclic, true, threads);
        },
        "double"_a, "sizes"_a, "z"_a, "cyclic"_a, "weights"_a, "u"_a, "threads"_a
    );
    m.def(
        "sine",
        [](bool twice, Address x, Address y, int64_t count, bool cosine) {
            if (twice)
                table().twice.sine(pointer<const double>(x), pointer<double>(y), count, cosine);
            else
                table().single.sine(pointer<const float>(x), pointer<float>(y), count, cosine);
        },
        "double"_a, "x"_a, "y"_a, "count"_a, "cosine"_a
    );
}

}  // namespace megabase
