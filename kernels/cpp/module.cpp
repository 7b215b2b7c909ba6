// The Python module: checks arrays, turns them into arguments, and cuts the work into tasks.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#if defined(MB_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "host.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace megabase {
namespace {

const Table* chosen = nullptr;

#if defined(MB_AMX)
// Whether the processor has the matrix unit and Linux lets this process use it: its state is large,
// so it has to be asked for.
bool matrix_unit() {
    unsigned a, b, c, d;
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILE)) != (BF16 | TILE)) return false;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

bool runs_here(const std::string& name) {
    if (name == "portable") return true;
#if defined(MB_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx2") return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512bw");
    if (name == "avx512") return avx512;
#if defined(MB_BF16)
    if (name == "avx512bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(MB_AMX)
    if (name == "amx") return avx512 && __builtin_cpu_supports("avx512bf16") && matrix_unit();
#endif
#endif
    return false;
}

const Table& table_named(const std::string& name) {
    if (!runs_here(name))
        throw std::invalid_argument("instruction set '" + name + "' does not run here");
#if defined(MB_X86)
#if defined(MB_BF16)
    if (name == "avx512bf16") return avx512bf16_table();
#endif
#if defined(MB_AMX)
    if (name == "amx") return amx_table();
#endif
    if (name == "avx512") return avx512_table();
    if (name == "avx2") return avx2_table();
#endif
    return portable_table();
}

}  // namespace

const Table& table() {
    if (!chosen) {
        for (const char* name : {"amx", "avx512bf16", "avx512", "avx2", "portable"})
            if (runs_here(name)) {
                chosen = &table_named(name);
                break;
            }
    }
    return *chosen;
}

namespace {

// Blocks of channels in one task: enough tasks for all threads, with equal shares.
int64_t groups_of(int64_t batch, int64_t blocks, int threads) {
    if (batch < 1 || batch >= threads || blocks <= 1) return 1;
    const int64_t wanted = (threads + batch - 1) / batch;
    return wanted < blocks ? wanted : blocks;
}

template <class T>
struct Cut {
    int64_t blocks, groups;
    Cut(int64_t batch, int64_t channels, int threads)
        : blocks((channels + table().of<T>().lanes - 1) / table().of<T>().lanes),
          groups(groups_of(batch, blocks, threads)) {}
    int64_t first(int64_t group) const { return group * blocks / groups; }
    int64_t largest() const { return (blocks + groups - 1) / groups; }
};

struct ScanSizes {
    int64_t batch, length, channels, states, steps;
    bool softplus, against;
};

using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool>;

struct ScanInputs {
    const Given &u, &delta, &A, &B, &C, &D, &z, &bias, &initial;
};

template <class T>
Scan<T> scan_arguments(const Sizes& sizes, const ScanInputs& in) {
    Scan<T> p{};
    bool against;
    std::tie(p.batch, p.length, p.channels, p.states, p.steps, p.softplus, against) = sizes;
    expect(p.length > 0 && p.steps > 0, "scan: expected a length and steps of 1 or more");
    const int64_t b = p.batch, l = p.length, e = p.channels, n = p.states;
    p.u = rows<const T>(in.u, "u", b, l, e, against);
    p.delta = rows<const T>(in.delta, "delta", b, l, e, against);
    p.B = rows<const T>(in.B, "B", b, l, n, against);
    p.C = rows<const T>(in.C, "C", b, l, n, against);
    p.z = rows<const T>(in.z, "z", b, l, e, against, Want::MAYBE);
    p.A = pointer<const T>(in.A, "A", {e, n});
    p.D = pointer<const T>(in.D, "D", {e}, Want::MAYBE);
    p.bias = pointer<const T>(in.bias, "bias", {e}, Want::MAYBE);
    p.initial = pointer<const T>(in.initial, "initial", {b, e, n}, Want::MAYBE);
    return p;
}

template <class T>
T* kept_states(const Scan<T>& p, const Given& kept, Want want) {
    const int64_t tiles = (p.length + p.steps - 1) / p.steps;
    return pointer<T>(kept, "kept", {p.batch, tiles, p.states, p.channels}, want);
}

template <class T, class Function>
void over_channels(const Scan<T>& p, int threads, int64_t elements_each, const Function& run) {
    // Workspaces are made before any thread starts, so that a lack of memory is an exception here.
    const Cut<T> cut(p.batch, p.channels, threads);
    const int64_t tasks = p.batch * cut.groups;
    const int64_t workers = tasks < threads ? tasks : threads;
    const int64_t each = (elements_each + 15) / 16 * 16;
    Workspace<T> memory(each * workers);
    std::atomic<int64_t> taken{0};
    parallel_for(workers, threads, [&](int64_t worker) {
        for (int64_t task; (task = taken.fetch_add(1)) < tasks;) {
            const int64_t group = task % cut.groups;
            run(task / cut.groups, cut.first(group), cut.first(group + 1), group,
                memory.data() + worker * each);
        }
    });
}

template <class T>
void scan_forward_as(
    const Sizes& sizes, const ScanInputs& in, const Given& y, const Given& final_state,
    const Given& kept, int threads
) {
    Scan<T> p = scan_arguments<T>(sizes, in);
    p.y = rows<T>(y, "y", p.batch, p.length, p.channels, std::get<6>(sizes));
    p.final_state = pointer<T>(final_state, "final_state", {p.batch, p.channels, p.states});
    p.kept = kept_states(p, kept, Want::MAYBE);
    const Functions<T>& f = table().of<T>();
    const int64_t blocks = Cut<T>(p.batch, p.channels, threads).largest();
    over_channels<T>(
        p, threads, f.scan_forward_workspace(p, blocks),
        [&](int64_t b, int64_t first, int64_t last, int64_t, T* work) {
            f.scan_forward(p, b, first, last, work);
        }
    );
}

// Adds up `parts` blocks of (rows, width) numbers, `apart` from each other; where `against`, the sums
// are written from the last row to the first.
template <class T>
void add_parts(
    const T* from, int64_t parts, int64_t apart, int64_t rows, int64_t width, bool against,
    int threads, T* to
) {
    if (width == 0) return;
    const int64_t each = (4096 + width - 1) / width;
    const bool small = rows * width * parts < (1 << 17);
    parallel_for((rows + each - 1) / each, small ? 1 : threads, [&](int64_t task) {
        const int64_t end = (task + 1) * each < rows ? (task + 1) * each : rows;
        for (int64_t row = task * each; row < end; ++row) {
            T* out = to + (against ? rows - 1 - row : row) * width;
            const T* in = from + row * width;
            for (int64_t i = 0; i < width; ++i) out[i] = parts ? in[i] : T(0);
            for (int64_t part = 1; part < parts; ++part)
                for (int64_t i = 0; i < width; ++i) out[i] += in[part * apart + i];
        }
    });
}

struct ScanGradients {
    const Given &dy, &dfinal, &kept, &du, &ddelta, &dA, &dB, &dC, &dD, &dz, &dbias, &dinitial;
};

template <class T>
void scan_backward_as(
    const Sizes& sizes, const ScanInputs& in, const ScanGradients& grad, int threads
) {
    Scan<T> p = scan_arguments<T>(sizes, in);
    const bool against = std::get<6>(sizes);
    const int64_t b = p.batch, l = p.length, e = p.channels, n = p.states;
    p.dy = rows<const T>(grad.dy, "dy", b, l, e, against);
    p.du = rows<T>(grad.du, "du", b, l, e, against);
    p.ddelta = rows<T>(grad.ddelta, "ddelta", b, l, e, against);
    p.dz = rows<T>(grad.dz, "dz", b, l, e, against, in.z ? Want::ALWAYS : Want::MAYBE);
    p.dfinal = pointer<const T>(grad.dfinal, "dfinal", {b, e, n}, Want::MAYBE);
    p.kept = kept_states(p, grad.kept, Want::ALWAYS);
    p.dinitial = pointer<T>(grad.dinitial, "dinitial", {b, e, n}, Want::MAYBE);
    const Functions<T>& f = table().of<T>();
    const Cut<T> cut(p.batch, p.channels, threads);
    // Every group of channels has sums over its channels, every sequence sums over its positions.
    // Positions are counted along the direction of reading until they are added up.
    const int64_t along = p.length * p.states, each = p.batch * along, rates = p.channels * p.states;
    const bool added = cut.groups > 1 || against, several = p.batch != 1;
    Workspace<T> groups(added ? 2 * cut.groups * each : 0);
    Workspace<T> sequences(several ? p.batch * (rates + 2 * p.channels) : 0);
    T *dB = pointer<T>(grad.dB, "dB", {b, l, n}), *dC = pointer<T>(grad.dC, "dC", {b, l, n});
    T *dA = pointer<T>(grad.dA, "dA", {e, n}), *dD = pointer<T>(grad.dD, "dD", {e});
    T* dbias = pointer<T>(grad.dbias, "dbias", {e});
    p.dB = added ? groups.data() : dB;
    p.dC = added ? groups.data() + cut.groups * each : dC;
    p.dA = several ? sequences.data() : dA;
    p.dD = several ? sequences.data() + p.batch * rates : dD;
    p.dbias = several ? p.dD + p.batch * p.channels : dbias;
    over_channels<T>(
        p, threads, f.scan_backward_workspace(p, cut.largest()),
        [&](int64_t b, int64_t first, int64_t last, int64_t group, T* work) {
            f.scan_backward(p, b, first, last, group, work);
        }
    );
    if (several) {
        add_parts(p.dA, p.batch, rates, p.channels, p.states, false, threads, dA);
        add_parts(p.dD, p.batch, p.channels, int64_t(1), p.channels, false, threads, dD);
        add_parts(p.dbias, p.batch, p.channels, int64_t(1), p.channels, false, threads, dbias);
    }
    if (added)
        for (int64_t b = 0; b < p.batch; ++b) {
            const int64_t at = b * along;
            const auto add = [&](const T* from, T* to) {
                add_parts(from + at, cut.groups, each, p.length, p.states, against, threads, to + at);
            };
            add(p.dB, dB), add(p.dC, dC);
        }
}

constexpr int64_t CONV_ROWS = 128;

using ConvSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

struct ConvInputs {
    const Given &x, &past, &weight, &bias;
};

template <class T>
Conv<T> conv_arguments(const ConvSizes& sizes, const ConvInputs& in) {
    Conv<T> p{};
    bool against;
    std::tie(p.batch, p.length, p.channels, p.taps, against) = sizes;
    expect(p.taps >= 1 && p.taps <= 8, "causal convolution: expected 1 to 8 taps");
    p.x = rows<const T>(in.x, "x", p.batch, p.length, p.channels, against);
    p.past = rows<const T>(in.past, "past", p.batch, p.taps - 1, p.channels, false, Want::MAYBE);
    p.weight = pointer<const T>(in.weight, "weight", {p.channels, p.taps});
    p.bias = pointer<const T>(in.bias, "bias", {p.channels}, Want::MAYBE);
    return p;
}

int64_t conv_tasks(int64_t batch, int64_t length) {
    return batch * ((length + CONV_ROWS - 1) / CONV_ROWS);
}

template <class Function>
void over_rows(int64_t batch, int64_t length, int threads, const Function& run) {
    const int64_t parts = (length + CONV_ROWS - 1) / CONV_ROWS;
    parallel_for(batch * parts, threads, [&](int64_t task) {
        const int64_t begin = task % parts * CONV_ROWS;
        run(task / parts, begin, begin + CONV_ROWS < length ? begin + CONV_ROWS : length, task);
    });
}

template <class T>
void conv_forward_as(const ConvSizes& sizes, const ConvInputs& in, const Given& y, int threads) {
    Conv<T> p = conv_arguments<T>(sizes, in);
    p.y = rows<T>(y, "y", p.batch, p.length, p.channels, std::get<4>(sizes));
    over_rows(p.batch, p.length, threads, [&](int64_t b, int64_t begin, int64_t end, int64_t) {
        table().of<T>().conv_forward(p, b, begin, end);
    });
}

struct ConvGradients {
    const Given &dy, &dx, &dpast, &dweight, &dbias;
};

template <class T>
void conv_backward_as(
    const ConvSizes& sizes, const ConvInputs& in, const ConvGradients& grad, int threads
) {
    Conv<T> p = conv_arguments<T>(sizes, in);
    const bool against = std::get<4>(sizes);
    const int64_t tasks = conv_tasks(p.batch, p.length);
    p.dy = rows<const T>(grad.dy, "dy", p.batch, p.length, p.channels, against);
    p.dx = rows<T>(grad.dx, "dx", p.batch, p.length, p.channels, against);
    p.dpast = rows<T>(grad.dpast, "dpast", p.batch, p.taps - 1, p.channels, false, Want::MAYBE);
    p.dweight = pointer<T>(grad.dweight, "dweight", {tasks, p.taps, p.channels});
    p.dbias = pointer<T>(grad.dbias, "dbias", {tasks, p.channels});
    over_rows(p.batch, p.length, threads, [&](int64_t b, int64_t begin, int64_t end, int64_t task) {
        table().of<T>().conv_backward(p, b, begin, end, task);
    });
}

// The exponentials of a scan alone: every block of channels runs through `positions` step sizes.
template <class T>
double exponentials_as(int64_t blocks, int64_t positions, int64_t states, int threads) {
    expect(blocks >= 0 && positions >= 0 && states >= 0, "exponentials: a size is negative");
    const Functions<T>& f = table().of<T>();
    Workspace<T> steps(positions * f.lanes), rates(states * f.lanes);
    for (int64_t i = 0; i < positions * f.lanes; ++i) steps.data()[i] = T(0.001) * T(1 + i % 97);
    for (int64_t i = 0; i < states * f.lanes; ++i) rates.data()[i] = T(-1.5) * T(1 + i / f.lanes);
    std::atomic<double> total{0};
    parallel_for(blocks, threads, [&](int64_t) {
        const double part = f.exponentials(steps.data(), rates.data(), positions, states);
        double seen = total.load();
        while (!total.compare_exchange_weak(seen, seen + part)) {
        }
    });
    return total.load();
}

}  // namespace
}  // namespace megabase

NB_MODULE(_megabase_kernels, m) {
    using namespace megabase;
    m.def("instruction_set", [] { return std::string(table().name); });
    m.def("runs_here", &runs_here, "name"_a);
    m.def("use", [](const std::string& name) { chosen = &table_named(name); }, "name"_a);
    m.def("parallel_runtime", [] { return std::string(parallel_runtime()); });
    m.def(
        "scan_forward",
        [](bool twice, Sizes sizes, const Given& u, const Given& delta, const Given& A,
           const Given& B, const Given& C, const Given& D, const Given& z, const Given& bias,
           const Given& initial, const Given& y, const Given& final_state, const Given& kept,
           int threads) {
            nb::gil_scoped_release release;
            const ScanInputs in{u, delta, A, B, C, D, z, bias, initial};
            (twice ? scan_forward_as<double> : scan_forward_as<float>)(
                sizes, in, y, final_state, kept, at_least_one(threads)
            );
        },
        "double"_a, "sizes"_a, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a, "D"_a.none(), "z"_a.none(),
        "bias"_a.none(), "initial"_a.none(), "y"_a, "final_state"_a, "kept"_a.none(), "threads"_a
    );
    m.def(
        "scan_backward",
        [](bool twice, Sizes sizes, const Given& u, const Given& delta, const Given& A,
           const Given& B, const Given& C, const Given& D, const Given& z, const Given& bias,
           const Given& initial, const Given& dy, const Given& dfinal, const Given& kept,
           const Given& du, const Given& ddelta, const Given& dA, const Given& dB, const Given& dC,
           const Given& dD, const Given& dz, const Given& dbias, const Given& dinitial,
           int threads) {
            nb::gil_scoped_release release;
            const ScanInputs in{u, delta, A, B, C, D, z, bias, initial};
            const ScanGradients grad{dy, dfinal, kept, du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial};
            (twice ? scan_backward_as<double> : scan_backward_as<float>)(
                sizes, in, grad, at_least_one(threads)
            );
        },
        "double"_a, "sizes"_a, "u"_a, "delta"_a, "A"_a, "B"_a, "C"_a, "D"_a.none(), "z"_a.none(),
        "bias"_a.none(), "initial"_a.none(), "dy"_a, "dfinal"_a.none(), "kept"_a, "du"_a, "ddelta"_a,
        "dA"_a, "dB"_a, "dC"_a, "dD"_a, "dz"_a.none(), "dbias"_a, "dinitial"_a.none(), "threads"_a
    );
    m.def("conv_tasks", &conv_tasks, "batch"_a, "length"_a);
    m.def(
        "conv_forward",
        [](bool twice, ConvSizes sizes, const Given& x, const Given& past, const Given& weight,
           const Given& bias, const Given& y, int threads) {
            nb::gil_scoped_release release;
            (twice ? conv_forward_as<double> : conv_forward_as<float>)(
                sizes, {x, past, weight, bias}, y, threads
            );
        },
        "double"_a, "sizes"_a, "x"_a, "past"_a.none(), "weight"_a, "bias"_a.none(), "y"_a, "threads"_a
    );
    m.def(
        "conv_backward",
        [](bool twice, ConvSizes sizes, const Given& x, const Given& past, const Given& weight,
           const Given& bias, const Given& dy, const Given& dx, const Given& dpast,
           const Given& dweight, const Given& dbias, int threads) {
            nb::gil_scoped_release release;
            (twice ? conv_backward_as<double> : conv_backward_as<float>)(
                sizes, {x, past, weight, bias}, {dy, dx, dpast, dweight, dbias}, threads
            );
        },
        "double"_a, "sizes"_a, "x"_a, "past"_a.none(), "weight"_a, "bias"_a.none(), "dy"_a, "dx"_a,
        "dpast"_a.none(), "dweight"_a, "dbias"_a, "threads"_a
    );
    m.def(
        "exponentials",
        [](bool twice, int64_t blocks, int64_t positions, int64_t states, int threads) {
            nb::gil_scoped_release release;
            return (twice ? exponentials_as<double> : exponentials_as<float>)(
                blocks, positions, states, threads
            );
        },
        "double"_a, "blocks"_a, "positions"_a, "states"_a, "threads"_a
    );
    add_blocked(m);
    add_layer(m);
    m.def("lanes", [](bool twice) { return twice ? table().twice.lanes : table().single.lanes; }, "double"_a);
    m.def(
        "exponential",
        [](bool twice, const Given& x, const Given& y) {
            const int64_t count = x ? int64_t(x->size()) : 0;
            if (twice)
                table().twice.exponential(
                    pointer<const double>(x, "x", {count}), pointer<double>(y, "y", {count}), count
                );
            else
                table().single.exponential(
                    pointer<const float>(x, "x", {count}), pointer<float>(y, "y", {count}), count
                );
        },
        "double"_a, "x"_a, "y"_a
    );
}
