// The ceiling of one core of this machine: the rate of the inner loops of docs/math.md (E9) with
// nothing around them, without masks, softmax, tails, range tests or threads. Rates of kernels are
// given relative to these.
//   g++ -O3 -march=native -std=c++20 cpu.cpp -o ceiling && ./ceiling [n m d]
// or python -m benchmarks.ceiling.
// GCC vector extensions, so the same source runs on any instruction set. Prints one JSON object.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
// Registers of LANES floats, wider than the compiler would choose by itself.
using Vec = float __attribute__((vector_size(LANES * sizeof(float))));

static Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static Vec splat(float x) { return x - Vec{}; }

template <class F>
static double fastest_seconds(int runs, F&& work) {
  using clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int r = 0; r < runs; r++) {
    const auto start = clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(clock::now() - start).count());
  }
  return best;
}

// Multiply-adds per second, with enough independent chains to hide the latency of each.
static double multiply_add_rate() {
  constexpr int CHAINS = 12;
  constexpr long ROUNDS = 3'000'000;
  Vec total{};
  const double seconds = fastest_seconds(5, [&] {
    Vec chain[CHAINS];
    for (int c = 0; c < CHAINS; c++) chain[c] = splat(1.f + 0.01f * c);
    const Vec factor = splat(0.9999f), step = splat(1e-4f);
    for (long r = 0; r < ROUNDS; r++)
#pragma GCC unroll 12
      for (int c = 0; c < CHAINS; c++) chain[c] = chain[c] * factor + step;
    for (const Vec& c : chain) total += c;
  });
  volatile float sink = total[0];  // the result must be used, or the compiler would drop the loop
  (void)sink;
  return double(ROUNDS) * CHAINS * LANES / seconds;
}

struct Problem {
  int n, m, d;
  std::vector<float> q, k, w, g;  // inputs, and the gradient of the scores
  std::vector<float> A, B;        // exp(2 q), exp(2 k) row by row

  Problem(int n, int m, int d)
      : n(n), m(m), d(d), q(n * d), k(m * d), w(d), g(n * m), A(n * d), B(m * d) {
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    for (float& x : q) x = normal(generator);
    for (float& x : k) x = normal(generator);
    for (float& x : w) x = normal(generator) / std::sqrt(float(d));
    for (float& x : g) x = normal(generator);
    std::transform(q.begin(), q.end(), A.begin(), [](float x) { return std::exp(2 * x); });
    std::transform(k.begin(), k.end(), B.begin(), [](float x) { return std::exp(2 * x); });
  }
  double elements() const { return double(n) * m * d; }
};

// Panels of `width` keys, features outermost, so that one load takes neighbouring keys of one
// feature.
static std::vector<float> key_panels(const Problem& p, int width) {
  std::vector<float> panels(p.B.size());
  for (int j = 0; j < p.m; j++)
    for (int t = 0; t < p.d; t++)
      panels[(size_t(j / width) * p.d + t) * width + j % width] = p.B[size_t(j) * p.d + t];
  return panels;
}

// (E9) in quads: ROWS queries by COLUMNS registers of keys, four features per division. Lanes over
// keys.
template <int ROWS, int COLUMNS>
static void scores(const Problem& p, const std::vector<float>& panels, float total,
                   std::vector<float>& out) {
  constexpr int WIDTH = COLUMNS * LANES;
  for (int j = 0; j < p.m; j += WIDTH)
    for (int i = 0; i < p.n; i += ROWS) {
      const float* b = &panels[size_t(j) * p.d];
      Vec sum[ROWS][COLUMNS] = {};
      for (int t = 0; t < p.d; t += 4, b += 4 * WIDTH) {
        const Vec w0 = splat(p.w[t]), w1 = splat(p.w[t + 1]), w2 = splat(p.w[t + 2]),
                  w3 = splat(p.w[t + 3]);
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
          const float* column = b + c * LANES;
          const Vec b0 = load(column), b1 = load(column + WIDTH);
          const Vec b2 = load(column + 2 * WIDTH), b3 = load(column + 3 * WIDTH);
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++) {
            const float* a = &p.A[size_t(i + r) * p.d + t];
            const Vec x0 = a[0] * b0 + 1.f, x1 = a[1] * b1 + 1.f, x2 = a[2] * b2 + 1.f,
                      x3 = a[3] * b3 + 1.f;
            const Vec d01 = x0 * x1, n01 = w0 * x1 + w1 * x0;
            const Vec d23 = x2 * x3, n23 = w2 * x3 + w3 * x2;
            sum[r][c] += (n01 * d23 + n23 * d01) / (d01 * d23);
          }
        }
      }
      for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++)
          store(&out[size_t(i + r) * p.m + j + c * LANES], total - 2.f * sum[r][c]);
    }
}

// r_c = 1 / x_c for SHARE sums with one division (batch inversion).
template <int SHARE>
static std::array<Vec, SHARE> reciprocals(const std::array<Vec, SHARE>& x) {
  if constexpr (SHARE == 1) {
    return {1.f / x[0]};
  } else if constexpr (SHARE == 2) {
    const Vec both = 1.f / (x[0] * x[1]);
    return {x[1] * both, x[0] * both};
  } else {
    const Vec x01 = x[0] * x[1], x23 = x[2] * x[3], all = 1.f / (x01 * x23), r01 = x23 * all,
              r23 = x01 * all;
    return {x[1] * r01, x[0] * r01, x[3] * r23, x[2] * r23};
  }
}

struct Gradients {
  std::vector<float> q, k, w;
};

// The sums of (E5) and (E6), without their factors of w: KEYS keys stay in registers while BLOCK
// queries pass. Lanes over features, SHARE keys per division.
template <int KEYS, int SHARE>
static void gradients(const Problem& p, Gradients& out) {
  constexpr int BLOCK = 32;
  std::fill(out.q.begin(), out.q.end(), 0.f);
  std::fill(out.k.begin(), out.k.end(), 0.f);
  for (int t = 0; t < p.d; t += LANES) {
    Vec weight{};
    for (int i0 = 0; i0 < p.n; i0 += BLOCK)
      for (int j = 0; j < p.m; j += KEYS) {
        Vec b[KEYS], key[KEYS];
        for (int c = 0; c < KEYS; c++) {
          b[c] = load(&p.B[size_t(j + c) * p.d + t]);
          key[c] = load(&out.k[size_t(j + c) * p.d + t]);
        }
        for (int i = i0; i < i0 + BLOCK; i++) {
          const Vec a = load(&p.A[size_t(i) * p.d + t]);
          const float* g = &p.g[size_t(i) * p.m + j];
          Vec query = load(&out.q[size_t(i) * p.d + t]);
#pragma GCC unroll 8
          for (int c = 0; c < KEYS; c += SHARE) {
            std::array<Vec, SHARE> x;
            for (int s = 0; s < SHARE; s++) x[s] = a * b[c + s] + 1.f;
            const auto r = reciprocals<SHARE>(x);
            for (int s = 0; s < SHARE; s++) {
              const Vec first = g[c + s] * r[s], second = first - first * r[s];
              weight += first;
              query += second;
              key[c + s] += second;
            }
          }
          store(&out.q[size_t(i) * p.d + t], query);
        }
        for (int c = 0; c < KEYS; c++) store(&out.k[size_t(j + c) * p.d + t], key[c]);
      }
    store(&out.w[t], weight);
  }
}

static double score_error(const Problem& p, const std::vector<float>& s) {
  double worst = 0;
  for (int i = 0; i < std::min(p.n, 8); i++)
    for (int j = 0; j < p.m; j++) {
      double exact = 0;
      for (int t = 0; t < p.d; t++)
        exact += p.w[t] * std::tanh(double(p.q[i * p.d + t]) + p.k[j * p.d + t]);
      worst = std::max(worst, std::abs(exact - s[size_t(i) * p.m + j]));
    }
  return worst;
}

// The error of the key gradients, whose sums run over all queries, relative to the largest.
static double gradient_error(const Problem& p, const Gradients& g) {
  double worst = 0, size = 0;
  for (int j = 0; j < std::min(p.m, 8); j++)
    for (int t = 0; t < p.d; t++) {
      double exact = 0;
      for (int i = 0; i < p.n; i++) {
        const double tanh = std::tanh(double(p.q[i * p.d + t]) + p.k[j * p.d + t]);
        exact += p.g[size_t(i) * p.m + j] * (1 - tanh * tanh) / 4;  // (E8) without its 4
      }
      worst = std::max(worst, std::abs(exact - g.k[j * p.d + t]));
      size = std::max(size, std::abs(exact));
    }
  return worst / size;
}

// Two sizes of a register block, as a type.
template <int A, int B>
struct Block {};

// The smallest seconds(block) over the given blocks.
template <class F, class... Blocks>
double least(const F& seconds, Blocks... blocks) {
  return std::min({seconds(blocks)...});
}

int main(int argc, char** argv) {
  const bool sized = argc == 4;
  const Problem p(sized ? std::atoi(argv[1]) : 512, sized ? std::atoi(argv[2]) : 512,
                  sized ? std::atoi(argv[3]) : 256);
  if (p.n <= 0 || p.m <= 0 || p.d <= 0 || p.n % 32 || p.m % (4 * LANES) || p.d % LANES) {
    std::fprintf(stderr, "n must be a multiple of 32, m of %d, d of %d\n", 4 * LANES, LANES);
    return 2;
  }
  constexpr int RUNS = 8;
  float total = 0;
  for (float w : p.w) total += w;

  // Which register block is best depends on the instruction set; the ceiling is the fastest of a
  // few.
  std::vector<float> out(size_t(p.n) * p.m);
  const double score_seconds = least(
      [&]<int ROWS, int COLUMNS>(Block<ROWS, COLUMNS>) {
        const std::vector<float> panels = key_panels(p, COLUMNS * LANES);
        return fastest_seconds(RUNS, [&] { scores<ROWS, COLUMNS>(p, panels, total, out); });
      },
      Block<1, 2>{}, Block<2, 1>{}, Block<2, 2>{}, Block<4, 1>{}, Block<4, 2>{}, Block<8, 1>{});

  Gradients g{std::vector<float>(p.q.size()), std::vector<float>(p.k.size()),
              std::vector<float>(p.d)};
  const double gradient_seconds = least(
      [&]<int KEYS, int SHARE>(Block<KEYS, SHARE>) {
        return fastest_seconds(RUNS, [&] { gradients<KEYS, SHARE>(p, g); });
      },
      Block<2, 2>{}, Block<4, 2>{}, Block<8, 2>{}, Block<4, 4>{}, Block<8, 4>{});

  std::printf(
      "{\"lanes\": %d, \"multiply_add_g\": %.2f, \"scores_g\": %.2f, \"gradients_g\": %.2f, "
      "\"scores_error\": %.1e, \"gradients_error\": %.1e}\n",
      LANES, multiply_add_rate() / 1e9, p.elements() / score_seconds / 1e9,
      p.elements() / gradient_seconds / 1e9, score_error(p, out), gradient_error(p, g));
}
