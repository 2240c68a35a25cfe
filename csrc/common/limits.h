// The range in which each form of a logistic activation may be used (docs/math.md, "Ranges"), for
// an exponent y = gain * (q + k).
#pragma once

namespace attnkernels {

template <class T>
struct Limits;

// Up to `quad` the product of four factors 1 + exp(y) and its reciprocal are normal numbers, and up
// to `pair` those of two. While |y| < `factored`, exp(y) neither overflows nor underflows.
// `exp_quad` is exp(quad), and `exp_pair` exp(pair): beyond exp_quad 1 / (1 + exp(y)) no longer
// changes the activation, so larger factors are cut to one of them.
template <>
struct Limits<float> {
  static constexpr float quad = 21.8f, pair = 43.6f, factored = 86.f, exp_quad = 2.9350784e9f,
                         exp_pair = 8.6146852e18f;
};
template <>
struct Limits<double> {
  static constexpr double quad = 176., pair = 350., factored = 700., exp_quad = 2.7314e76,
                          exp_pair = 1.0070908870280797e152;
};

}  // namespace attnkernels
