// The range in which each form of a logistic activation may be used (docs/math.md, "Ranges"), for
// an exponent y = gain * (q + k).
#pragma once

namespace attnkernels {

template <class T>
struct Limits;

// Up to `quad` the product of four factors 1 + exp(y) is finite, and up to `pair` that of two.
// While |y| < `factored`, exp(y) neither overflows nor underflows. `exp_quad` is exp(quad): beyond
// it 1 / (1 + exp(y)) no longer changes the activation, so larger factors are cut to it.
template <>
struct Limits<float> {
  static constexpr float quad = 22.f, pair = 44.f, factored = 86.f, exp_quad = 3.5849128e9f;
};
template <>
struct Limits<double> {
  static constexpr double quad = 176., pair = 350., factored = 700., exp_quad = 2.7314e76;
};

// The range in which a float16 holds exp(y) of a key: below exp(`high`); to 11 bits from
// exp(-`normal`) on, and below that to 2^-25, which is as good for queries whose y is at most
// `query`.
struct Float16Limits {
  static constexpr float high = 11.f, normal = 9.7f, query = 8.f;
};

}  // namespace attnkernels
