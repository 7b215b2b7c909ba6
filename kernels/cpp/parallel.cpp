#include "parallel.h"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace megabase {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Looked up at run time and not linked, so that it is the very runtime that torch uses, whatever
// its file is called, and so that building needs no OpenMP.
Parallel find_openmp() {
#if defined(_WIN32)
    return nullptr;
#else
    return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

Parallel openmp() {
    static const Parallel found = find_openmp();
    return found;
}

struct Job {
    int64_t count;
    const std::function<void(int64_t)>& task;
    std::atomic<int64_t> next{0};

    void work() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    }
    static void run(void* job) { static_cast<Job*>(job)->work(); }
};

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
    Job job{count, task};
    if (threads > count) threads = int(count);
    if (threads <= 1) return job.work();
    if (openmp()) return openmp()(&Job::run, &job, unsigned(threads), 0);
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (int i = 1; i < threads; ++i) others.emplace_back(&Job::run, &job);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run do the work.
    }
    job.work();
    for (std::thread& other : others) other.join();
}

const char* parallel_runtime() { return openmp() ? "openmp" : "threads"; }

}  // namespace megabase
