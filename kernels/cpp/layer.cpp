// One Hyena layer without its transforms, over rows of any sequences, with its weights packed once,
// and what the head of a language model says about letters: for callers that run the same model over
// many short pieces.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

template <class T>
class Layer {
  public:
    // sizes: width, taps, inner. addresses: weight and bias of the first norm, w_in, b_in, w, b,
    // w_out, b_out, weight and bias of the second norm, w1, b1, w2, b2. The norms are read where
    // they are by every call; all else is copied.
    Layer(const Numbers& sizes, double eps_mixer, double eps_mlp, const Addresses& a)
        : functions_(table().of<T>()), mixer_(mixer_of(sizes, eps_mixer, a)),
          mlp_(mlp_of(sizes, eps_mlp, a)),
          mixer_weights_(functions_.full.mixer_weights_size(mixer_, false)),
          mlp_weights_(functions_.full.mlp_weights_size(mlp_, false)) {
        functions_.full.mixer_pack(mixer_, false, mixer_weights_.data());
        functions_.full.mlp_pack(mlp_, false, mlp_weights_.data());
    }

    // From x (batch, length, width) the gated value u (batch, width, length) and the output gate
    // (batch, length, width), both from row `first` on; rows before it are only looked at.
    void open(int64_t batch, int64_t length, int64_t first, Address x, Address u, Address gate, int threads) const {
        Mixer<T> m = mixer_;
        m.batch = batch, m.length = length;
        m.x = pointer<const T>(x), m.u = pointer<T>(u), m.out = pointer<T>(gate);
        run(batch, length, first, threads, functions_.full.mixer_workspace(m, false),
            [&](int64_t b, int64_t t0, int64_t t1, T* work) {
                functions_.full.mixer_open(m, mixer_weights_.data(), b, t0, t1, false, work);
            });
    }

    // From the transforms' result y (batch, width, length), the output gate (which is overwritten)
    // and the running sum x the running sum after the layer, (batch, length, width).
    void close(int64_t batch, int64_t length, Address y, Address gate, Address x, Address out, int threads) const {
        Mixer<T> m = mixer_;
        Mlp<T> p = mlp_;
        m.batch = batch, m.length = length, p.rows = batch * length;
        m.u = pointer<T>(y), m.out = pointer<T>(gate);
        p.x = m.out, p.y = pointer<T>(out);
        const T* const before = pointer<const T>(x);
        const Blocked<T>& f = functions_.full;
        const int64_t of_mixer = rounded(f.mixer_workspace(m, false));
        run(batch, length, 0, threads, of_mixer + f.mlp_forward_workspace(p),
            [&](int64_t b, int64_t t0, int64_t t1, T* work) {
                const int64_t begin = b * length + t0, end = b * length + t1;
                f.mixer_gate(m, mixer_weights_.data(), b, t0, t1, work);
                f.mixer_close(m, mixer_weights_.data(), b, t0, t1, work);
                add(m.out, before, begin * m.width, end * m.width);
                f.mlp_forward(p, mlp_weights_.data(), begin, end, work + of_mixer);
                add(p.y, m.out, begin * m.width, end * m.width);
            });
    }

  private:
    const Functions<T>& functions_;
    Mixer<T> mixer_;
    Mlp<T> mlp_;
    Workspace<T> mixer_weights_, mlp_weights_;

    static void add(T* total, const T* other, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) total[i] += other[i];
    }

    static Mixer<T> mixer_of(const Numbers& sizes, double eps, const Addresses& a) {
        if (sizes.size() != 3 || a.size() != 14)
            throw std::invalid_argument("expected 3 sizes and 14 addresses");
        Mixer<T> m{};
        m.width = sizes[0], m.taps = sizes[1], m.first = 0, m.last = sizes[0];
        m.norm = {pointer<const T>(a[0]), pointer<const T>(a[1]), T(eps)};
        size_t at = 2;
        for (const T** input : {&m.w_in, &m.b_in, &m.w, &m.b, &m.w_out, &m.b_out})
            *input = pointer<const T>(a[at++]);
        return m;
    }

    static Mlp<T> mlp_of(const Numbers& sizes, double eps, const Addresses& a) {
        Mlp<T> p{};
        p.width = sizes[0], p.inner = sizes[2];
        p.norm = {pointer<const T>(a[8]), pointer<const T>(a[9]), T(eps)};
        size_t at = 10;
        for (const T** input : {&p.w1, &p.b1, &p.w2, &p.b2}) *input = pointer<const T>(a[at++]);
        return p;
    }

    // Blocks of the rows from `first` on, shared out over the threads.
    template <class Function>
    void run(
        int64_t batch, int64_t length, int64_t first, int threads, int64_t workspace,
        const Function& function
    ) const {
        const int64_t rows = functions_.block_rows, each = rounded(workspace);
        const int64_t parts = (length - first + rows - 1) / rows, blocks = batch * parts;
        if (blocks <= 0) return;
        const int64_t workers = blocks < threads ? blocks : (threads > 0 ? threads : 1);
        const Workspace<T> memory(each * workers);
        parallel_for(workers, int(workers), [&](int64_t worker) {
            for (int64_t block = blocks * worker / workers; block < blocks * (worker + 1) / workers; ++block) {
                const int64_t t0 = first + block % parts * rows;
                const int64_t t1 = t0 + rows < length ? t0 + rows : length;
                function(block / parts, t0, t1, memory.data() + worker * each);
            }
        });
    }
};

// Natural log-probabilities, among four letters, of those that follow. sizes: batch, rows, width.
// addresses: weight and bias of the last norm, x (batch, rows, width), w (4, width), before, codes,
// logits, out. The letters are codes (batch, rows) that stand after each row; with `before` (batch,
// 4), logits of one row more in front, there is one more of them. `logits` is (batch, rows, 4), `out`
// float of the shape of codes: NaN for codes that are none of the four.
template <class T>
void letters_as(const Numbers& sizes, double eps, const Addresses& a) {
    if (sizes.size() != 3 || a.size() != 8)
        throw std::invalid_argument("expected 3 sizes and 8 addresses");
    const int64_t batch = sizes[0], rows = sizes[1], width = sizes[2];
    const Norm<T> norm{pointer<const T>(a[0]), pointer<const T>(a[1]), T(eps)};
    const T* const before = pointer<const T>(a[4]);
    const uint8_t* code = pointer<const uint8_t>(a[5]);
    T* const logits = pointer<T>(a[6]);
    float* out = pointer<float>(a[7]);
    table().of<T>().letter_logits(
        norm, pointer<const T>(a[2]), batch * rows, width, pointer<const T>(a[3]), logits
    );
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t t = before ? -1 : 0; t < rows; ++t, ++code, ++out) {
            if (*code > 3) {
                *out = std::numeric_limits<float>::quiet_NaN();
                continue;
            }
            const T* const l = t < 0 ? before + 4 * b : logits + 4 * (b * rows + t);
            const T most = std::max(std::max(l[0], l[1]), std::max(l[2], l[3]));
            T total = 0;
            for (int v = 0; v < 4; ++v) total += std::exp(l[v] - most);
            *out = float(l[*code] - most - std::log(total));
        }
}

template <class T>
void add_class(nb::module_& m, const char* name) {
    nb::class_<Layer<T>>(m, name)
        .def(
            nb::init<const Numbers&, double, double, const Addresses&>(), "sizes"_a, "eps_mixer"_a,
            "eps_mlp"_a, "addresses"_a
        )
        .def(
            "open", &Layer<T>::open, "batch"_a, "length"_a, "first"_a, "x"_a, "u"_a, "gate"_a,
            "threads"_a, nb::call_guard<nb::gil_scoped_release>()
        )
        .def(
            "close", &Layer<T>::close, "batch"_a, "length"_a, "y"_a, "gate"_a, "x"_a, "out"_a,
            "threads"_a, nb::call_guard<nb::gil_scoped_release>()
        );
}

}  // namespace

void add_layer(nb::module_& m) {
    add_class<float>(m, "Layer32");
    add_class<double>(m, "Layer64");
    m.def(
        "letters",
        [](bool twice, const Numbers& sizes, double eps, const Addresses& addresses) {
            nb::gil_scoped_release release;
            (twice ? letters_as<double> : letters_as<float>)(sizes, eps, addresses);
        },
        "double"_a, "sizes"_a, "eps"_a, "addresses"_a
    );
}

}  // namespace megabase
