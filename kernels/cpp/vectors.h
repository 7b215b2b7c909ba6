// Vectors of float or double as wide as the instruction set allows, and the functions of them that
// the kernels need. Included by instruction_set.cpp only, which is compiled once for each set:
// MB_SET names the set (and the namespace), MB_BYTES is the size of a vector.
//
// No template of the standard library may be used here: its code would carry the name of no set,
// and the linker could pick the copy that an older processor cannot run.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define MB_INLINE inline __attribute__((always_inline))

namespace megabase {
namespace MB_SET {

template <class T>
struct Kind;

template <>
struct Kind<float> {
    typedef float Vector __attribute__((vector_size(MB_BYTES)));
    typedef float Loose __attribute__((vector_size(MB_BYTES), aligned(4), may_alias));
    typedef int32_t Whole __attribute__((vector_size(MB_BYTES)));
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr float low = -252.0f, high = 254.0f;
};

template <>
struct Kind<double> {
    typedef double Vector __attribute__((vector_size(MB_BYTES)));
    typedef double Loose __attribute__((vector_size(MB_BYTES), aligned(8), may_alias));
    typedef int64_t Whole __attribute__((vector_size(MB_BYTES)));
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double low = -2044.0, high = 2046.0;
};

template <class T>
using Vec = typename Kind<T>::Vector;

template <class T>
constexpr int lanes = MB_BYTES / int(sizeof(T));

template <class T>
MB_INLINE Vec<T> all(T value) {
    return value - Vec<T>{};  // a sum would have to turn -0 into 0
}

template <class T>
MB_INLINE Vec<T> load(const T* from) {
    return *reinterpret_cast<const typename Kind<T>::Loose*>(from);
}

template <class T>
MB_INLINE void store(T* to, Vec<T> value) {
    *reinterpret_cast<typename Kind<T>::Loose*>(to) = value;
}

// The first `count` lanes; the others are zero, and are not written.
template <class T>
MB_INLINE Vec<T> load_part(const T* from, int count) {
    if (count == lanes<T>) return load<T>(from);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
    else
        return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from);
#else
    Vec<T> value{};
    for (int i = 0; i < count; ++i) value[i] = from[i];
    return value;
#endif
}

template <class T>
MB_INLINE void store_part(T* to, Vec<T> value, int count) {
    if (count == lanes<T>) return store<T>(to, value);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
    else
        _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), (__m512d)value);
#else
    for (int i = 0; i < count; ++i) to[i] = value[i];
#endif
}

template <class T>
MB_INLINE T sum(Vec<T> value) {
    T total = 0;
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) total += value[i];
    return total;
}

// Every second lane of two vectors side by side, from lane `first` on.
template <class T>
MB_INLINE Vec<T> every_second(Vec<T> one, Vec<T> other, int first) {
#if defined(__clang__)
    Vec<T> picked;
    for (int i = 0; i < lanes<T>; ++i) {
        const int from = 2 * i + first;
        picked[i] = from < lanes<T> ? one[from] : other[from - lanes<T>];
    }
    return picked;
#else
    typename Kind<T>::Whole from;
    for (int i = 0; i < lanes<T>; ++i) from[i] = 2 * i + first;
    return __builtin_shuffle(one, other, from);
#endif
}

// Sums of neighbours: one[0] + one[1], one[2] + one[3], ..., other[0] + other[1], ...
template <class T>
MB_INLINE Vec<T> pair_sums(Vec<T> one, Vec<T> other) {
    return every_second<T>(one, other, 0) + every_second<T>(one, other, 1);
}

// 2^f for |f| <= 1/2, exactly 1 at 0. float: fitted for the smallest relative error (9e-8).
MB_INLINE Vec<float> small_power(Vec<float> f) {
    Vec<float> p = all(0.001326472731307149f);
    p = p * f + 0.009671512991189957f;
    p = p * f + 0.05550733581185341f;
    p = p * f + 0.24022242426872253f;
    p = p * f + 0.6931470036506653f;
    return p * f + 1.0f;
}

// double: the series of exp, to a relative error of 1e-17.
MB_INLINE Vec<double> small_power(Vec<double> f) {
    const Vec<double> x = f * 0.69314718055994530942;
    Vec<double> p = all(1.0 / 6227020800.0);
    p = p * x + 1.0 / 479001600.0;
    p = p * x + 1.0 / 39916800.0;
    p = p * x + 1.0 / 3628800.0;
    p = p * x + 1.0 / 362880.0;
    p = p * x + 1.0 / 40320.0;
    p = p * x + 1.0 / 5040.0;
    p = p * x + 1.0 / 720.0;
    p = p * x + 1.0 / 120.0;
    p = p * x + 1.0 / 24.0;
    p = p * x + 1.0 / 6.0;
    p = p * x + 0.5;
    p = p * x + 1.0;
    return p * x + 1.0;
}

// The whole number nearest to x.
template <class T>
MB_INLINE Vec<T> nearest(Vec<T> x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_roundscale_ps((__m512)x, 8);
    else
        return (Vec<T>)_mm512_roundscale_pd((__m512d)x, 8);
#else
    return (x + Kind<T>::magic) - Kind<T>::magic;
#endif
}

// value * 2^whole: results that are too small fade to zero, those too large are infinite.
template <class T>
MB_INLINE Vec<T> scale(Vec<T> value, Vec<T> whole) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_scalef_ps((__m512)value, (__m512)whole);
    else
        return (Vec<T>)_mm512_scalef_pd((__m512d)value, (__m512d)whole);
#else
    typedef typename Kind<T>::Whole Whole;
    constexpr int shift = Kind<T>::mantissa;
    const Whole number = (Whole)(whole + Kind<T>::magic) - (Whole)all(Kind<T>::magic);
    const Whole half = number >> 1;
    const Vec<T> one = (Vec<T>)((half + Kind<T>::bias) << shift);
    const Vec<T> other = (Vec<T>)((number - half + Kind<T>::bias) << shift);
    return value * one * other;
#endif
}

// Where `scale` cannot take any number: to where its results are zero or infinite anyway.
template <class T>
MB_INLINE Vec<T> bounded(Vec<T> x, Vec<T> low, Vec<T> high) {
#if !defined(__AVX512F__)
    x = x < low ? low : x;  // NaN compares false and stays
    x = x > high ? high : x;
#endif
    return x;
}

// 2^x, to 2.3 units in the last place; zero, infinity and NaN come out as they should.
template <class T>
MB_INLINE Vec<T> power_of_two(Vec<T> x) {
    x = bounded<T>(x, all(Kind<T>::low), all(Kind<T>::high));
    const Vec<T> whole = nearest<T>(x);
    return scale<T>(small_power(x - whole), whole);
}

template <class T>
constexpr T log2_e = T(1.44269504088896340736);
template <class T>
constexpr T ln_2 = T(0.69314718055994530942);

// e^x. What a whole power takes is subtracted in two parts, the first one exact, so that large x
// lose nothing.
template <class T>
MB_INLINE Vec<T> exponential(Vec<T> x) {
    constexpr bool single = sizeof(T) == 4;
    constexpr T first = single ? T(0.693359375) : T(6.93145751953125e-1);
    constexpr T second = single ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
    constexpr T low = ln_2<T> * Kind<T>::low, high = ln_2<T> * Kind<T>::high;
    x = bounded<T>(x, all(low), all(high));
    const Vec<T> whole = nearest<T>(x * log2_e<T>);
    const Vec<T> rest = x - whole * first - whole * second;
    return scale<T>(small_power(rest * log2_e<T>), whole);
}

template <class T>
MB_INLINE Vec<T> sigmoid(Vec<T> x) {
    return T(1) / (T(1) + exponential<T>(-x));
}

// log(1 + e) for 0 <= e <= 1, with a small relative error. float: fitted for the smallest one
// (1.6e-7), without the division of the other.
MB_INLINE Vec<float> log_one_plus(Vec<float> e) {
    Vec<float> p = all(0.005364822689443827f);
    p = p * e - 0.030065786093473434f;
    p = p * e + 0.07920452207326889f;
    p = p * e - 0.13753801584243774f;
    p = p * e + 0.191536545753479f;
    p = p * e - 0.24857163429260254f;
    p = p * e + 0.3332132399082184f;
    p = p * e - 0.49999648332595825f;
    return (p * e + 1.0f) * e;
}

// double: 2 atanh(e / (2 + e)).
MB_INLINE Vec<double> log_one_plus(Vec<double> e) {
    const Vec<double> s = e / (e + 2.0);
    const Vec<double> q = s * s;
    Vec<double> p = all(1.0 / 35.0);
#pragma GCC unroll 16
    for (int k = 33; k >= 3; k -= 2) p = p * q + 1.0 / k;
    return 2.0 * (s + s * q * p);
}

// softplus as torch has it: x itself above 20. Gives the slope too.
template <class T>
MB_INLINE Vec<T> softplus(Vec<T> x, Vec<T>& slope) {
    const Vec<T> zero{};
    const Vec<T> e = exponential<T>(x > zero ? -x : x);
    const Vec<T> value = (x > zero ? x : zero) + log_one_plus(e);
    const Vec<T> part = T(1) / (T(1) + e);
    slope = x > T(20) ? all<T>(T(1)) : (x > zero ? part : e * part);
    return x > T(20) ? x : value;
}

}  // namespace MB_SET
}  // namespace megabase
