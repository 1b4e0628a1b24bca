// Arithmetic of PTX that C has no operator for. Rounding towards zero, down and up is done by the processor, with the
// rounding mode set around one instruction; nothing else runs under that mode.
IN f32 ftz(f32 x) { return B(x) & 0x7f800000u ? x : F(B(x) & 0x80000000u); }
IN f32 sat32(f32 x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
IN f64 sat64(f64 x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
IN u32 csr() { u32 m; asm volatile("stmxcsr %0" : "=m"(m)); return m; }
IN void set_csr(u32 m) { asm volatile("ldmxcsr %0" : : "m"(m)); }
enum { RN = 0, RM = 1, RP = 2, RZ = 3 };
#define ROUNDED2(T, name, op) static __attribute__((noinline)) T name(u32 mode, T a, T b) { u32 old = csr(); \
  set_csr((old & ~0x6000u) | mode << 13); asm volatile(op " %1, %0" : "+x"(a) : "x"(b)); set_csr(old); return a; }
ROUNDED2(f32, add32r, "addss") ROUNDED2(f32, mul32r, "mulss") ROUNDED2(f32, div32r, "divss") ROUNDED2(f32, sqrt32r, "sqrtss")
ROUNDED2(f64, add64r, "addsd") ROUNDED2(f64, mul64r, "mulsd") ROUNDED2(f64, div64r, "divsd") ROUNDED2(f64, sqrt64r, "sqrtsd")
#define ROUNDED3(T, name, op) static __attribute__((noinline)) T name(u32 mode, T a, T b, T d) { u32 old = csr(); \
  set_csr((old & ~0x6000u) | mode << 13); asm volatile(op " %2, %1, %0" : "+x"(a) : "x"(b), "x"(d)); set_csr(old); return a; }
ROUNDED3(f32, fma32r, "vfmadd213ss") ROUNDED3(f64, fma64r, "vfmadd213sd")
static __attribute__((noinline)) f32 f64_to_f32r(u32 mode, f64 a) { f32 r = 0; u32 old = csr();
  set_csr((old & ~0x6000u) | mode << 13); asm volatile("cvtsd2ss %1, %0" : "+x"(r) : "x"(a)); set_csr(old); return r; }
// Integers to f32 and f64 under a rounding mode: the value is exact in an 80-bit float, which is rounded once.
static __attribute__((noinline)) f32 int_to_f32r(u32 mode, s128 v) { long double x = (long double)v; f32 r; u16 cw, old;
  asm volatile("fnstcw %0" : "=m"(old)); cw = (u16)((old & ~0x0c00) | mode << 10); asm volatile("fldcw %0" : : "m"(cw));
  asm volatile("fstps %0" : "=m"(r) : "t"(x) : "st"); asm volatile("fldcw %0" : : "m"(old)); return r; }
static __attribute__((noinline)) f64 int_to_f64r(u32 mode, s128 v) { long double x = (long double)v; f64 r; u16 cw, old;
  asm volatile("fnstcw %0" : "=m"(old)); cw = (u16)((old & ~0x0c00) | mode << 10); asm volatile("fldcw %0" : : "m"(cw));
  asm volatile("fstpl %0" : "=m"(r) : "t"(x) : "st"); asm volatile("fldcw %0" : : "m"(old)); return r; }
// To an integral value: even ties, zero, down, up.
IN f64 integral64(u32 mode, f64 x) { return mode == RZ ? __builtin_trunc(x) : mode == RM ? __builtin_floor(x)
  : mode == RP ? __builtin_ceil(x) : __builtin_rint(x); }
IN f32 integral32(u32 mode, f32 x) { return mode == RZ ? __builtin_truncf(x) : mode == RM ? __builtin_floorf(x)
  : mode == RP ? __builtin_ceilf(x) : __builtin_rintf(x); }
// To an integer, clamped to its range; NaN gives 0.
#define TO_INT(name, T, low, high, above) IN T name(f64 x) { return x != x ? 0 : x <= (f64)(low) ? (low) : x >= (above) ? (high) : (T)x; }
TO_INT(to_s8, s8, -128, 127, 127.0) TO_INT(to_u8, u8, 0, 255, 255.0)
TO_INT(to_s16, s16, -32768, 32767, 32767.0) TO_INT(to_u16, u16, 0, 65535, 65535.0)
TO_INT(to_s32, s32, -2147483647 - 1, 2147483647, 2147483647.0) TO_INT(to_u32, u32, 0, 4294967295u, 4294967295.0)
TO_INT(to_s64, s64, -9223372036854775807l - 1, 9223372036854775807l, 9223372036854775808.0)
TO_INT(to_u64, u64, 0, 18446744073709551615ul, 18446744073709551616.0)
#define CLAMP(name, T, low, high) IN T name(s128 x) { return (T)(x < (s128)(low) ? (s128)(low) : x > (s128)(high) ? (s128)(high) : x); }
CLAMP(sat_s8, s8, -128, 127) CLAMP(sat_u8, u8, 0, 255) CLAMP(sat_s16, s16, -32768, 32767) CLAMP(sat_u16, u16, 0, 65535)
CLAMP(sat_s32, s32, -2147483647 - 1, 2147483647) CLAMP(sat_u32, u32, 0, 4294967295u)
CLAMP(sat_s64, s64, -9223372036854775807l - 1, 9223372036854775807l) CLAMP(sat_u64, u64, 0, 18446744073709551615ul)
// The half types. A result that is not exact in f64 is made odd before its one rounding, so that it is right.
IN f64 odd(f64 sum, f64 rest) { u64 b = C(sum); if (rest == 0 || (b & 1) || !(__builtin_fabs(sum) < __builtin_inf())) return sum;
  return D((rest > 0) == (sum > 0) ? b + 1 : b - 1); }
IN f64 fma_odd(f64 a, f64 b, f64 d) { f64 p = a * b, s = p + d, t = s - p; return odd(s, (p - (s - t)) + (d - t)); }
IN f32 narrow_odd(f64 x) { f32 r = (f32)x; if ((f64)r == x || r != r || (B(r) & 1)) return r;
  if ((B(r) << 1) == 0xff000000u) return F(B(r) - 1);
  return F(((f64)__builtin_fabsf(r) < __builtin_fabs(x)) ? B(r) + 1 : B(r) - 1); }
typedef f32 four __attribute__((vector_size(16)));
#define HALF_TO(name, mode) IN u16 name(f32 x) { if (x != x) return 0x7fff; four v = { x, 0, 0, 0 }, r; \
  asm("vcvtps2ph $" #mode ", %1, %0" : "=x"(r) : "x"(v)); return (u16)B(r[0]); }
HALF_TO(half_rn, 0) HALF_TO(half_rm, 1) HALF_TO(half_rp, 2) HALF_TO(half_rz, 3)
IN f32 half(u16 h) { four v = { F(h), 0, 0, 0 }, r; asm("vcvtph2ps %1, %0" : "=x"(r) : "x"(v)); return r[0]; }
IN f32 brain(u16 h) { return F((u32)h << 16); }
IN u16 brain_rn(f32 x) { u32 b = B(x); return x != x ? 0x7fff : (u16)((b + 0x7fff + ((b >> 16) & 1)) >> 16); }
IN u16 brain_rz(f32 x) { return x != x ? 0x7fff : (u16)(B(x) >> 16); }
IN u32 tf32_rna(f32 x) { u32 b = B(x); return (b & 0x7f800000u) == 0x7f800000u ? (x != x ? 0x7fffffffu : b) : (b + 0x1000) & ~0x1fffu; }
IN u32 tf32_rn(f32 x) { u32 b = B(x); return (b & 0x7f800000u) == 0x7f800000u ? (x != x ? 0x7fffffffu : b) : (b + 0xfff + ((b >> 13) & 1)) & ~0x1fffu; }
#define HALVES(N, wide, rn) \
  IN u16 add_##N(u16 a, u16 b) { return rn(wide(a) + wide(b)); } \
  IN u16 sub_##N(u16 a, u16 b) { return rn(wide(a) - wide(b)); } \
  IN u16 mul_##N(u16 a, u16 b) { return rn(narrow_odd((f64)wide(a) * wide(b))); } \
  IN u16 fma_##N(u16 a, u16 b, u16 d) { return rn(narrow_odd(fma_odd(wide(a), wide(b), wide(d)))); } \
  IN u16 min_##N(u16 a, u16 b) { f32 x = wide(a), y = wide(b); return x != x ? (y != y ? 0x7fff : b) : y != y ? a : x < y || (x == y && a >> 15) ? a : b; } \
  IN u16 max_##N(u16 a, u16 b) { f32 x = wide(a), y = wide(b); return x != x ? (y != y ? 0x7fff : b) : y != y ? a : x > y || (x == y && !(a >> 15)) ? a : b; } \
  IN u16 minnan_##N(u16 a, u16 b) { return wide(a) != wide(a) || wide(b) != wide(b) ? 0x7fff : min_##N(a, b); } \
  IN u16 maxnan_##N(u16 a, u16 b) { return wide(a) != wide(a) || wide(b) != wide(b) ? 0x7fff : max_##N(a, b); } \
  IN u16 neg_##N(u16 a) { return a ^ 0x8000; } IN u16 abs_##N(u16 a) { return a & 0x7fff; } \
  IN u16 relu_##N(u16 a) { return wide(a) != wide(a) ? 0x7fff : a >> 15 ? 0 : a; } \
  IN u16 ex2_##N(u16 a) { return rn(__builtin_exp2f(wide(a))); } IN u16 tanh_##N(u16 a) { return rn(__builtin_tanhf(wide(a))); }
HALVES(f16, half, half_rn) HALVES(bf16, brain, brain_rn)
#define PAIR1(f, a) ((u32)f((u16)(a)) | (u32)f((u16)((a) >> 16)) << 16)
#define PAIR2(f, a, b) ((u32)f((u16)(a), (u16)(b)) | (u32)f((u16)((a) >> 16), (u16)((b) >> 16)) << 16)
#define PAIR3(f, a, b, d) ((u32)f((u16)(a), (u16)(b), (u16)(d)) | (u32)f((u16)((a) >> 16), (u16)((b) >> 16), (u16)((d) >> 16)) << 16)
IN u32 at_addf16x2(u8* p, u32 b) { u32 a = L32(p); S32(p, PAIR2(add_f16, a, b)); return a; }
IN u32 at_addbf16x2(u8* p, u32 b) { u32 a = L32(p); S32(p, PAIR2(add_bf16, a, b)); return a; }
IN u16 at_addf16(u8* p, u16 b) { u16 a = L16(p); S16(p, add_f16(a, b)); return a; }
IN u16 at_addbf16(u8* p, u16 b) { u16 a = L16(p); S16(p, add_bf16(a, b)); return a; }
// min and max give the other operand for a NaN, and order the zeros.
#define EXTREMES(T, N, bits, top) \
  IN T min##N(T a, T b) { return a != a ? b : b != b ? a : a < b || (a == b && bits(a) >> top) ? a : b; } \
  IN T max##N(T a, T b) { return a != a ? b : b != b ? a : a > b || (a == b && !(bits(a) >> top)) ? a : b; } \
  IN T minnan##N(T a, T b) { return a != a ? a : b != b ? b : min##N(a, b); } \
  IN T maxnan##N(T a, T b) { return a != a ? a : b != b ? b : max##N(a, b); }
EXTREMES(f32, 32, B, 31) EXTREMES(f64, 64, C, 63)
IN f32 copysign32(f32 sign, f32 x) { return __builtin_copysignf(x, sign); }
IN f64 copysign64(f64 sign, f64 x) { return __builtin_copysign(x, sign); }
// Approximations of the card are computed as well as the C library can.
IN f32 ex2_approx(f32 x) { return __builtin_exp2f(x); }
IN f32 lg2_approx(f32 x) { return __builtin_log2f(x); }
IN f32 rsqrt_approx(f32 x) { return (f32)(1.0 / __builtin_sqrt((f64)x)); }
IN f64 rsqrt_approx64(f64 x) { return 1.0 / __builtin_sqrt(x); }
IN f32 sin_approx(f32 x) { return __builtin_sinf(x); }
IN f32 cos_approx(f32 x) { return __builtin_cosf(x); }
IN f32 tanh_approx(f32 x) { return __builtin_tanhf(x); }
// Integers. Shifts beyond the width give 0 (or the sign), as PTX has it.
#define SHIFTS(N, U, S) \
  IN U shl##N(U a, u32 n) { return n >= N ? 0 : (U)(a << n); } IN U shr##N(U a, u32 n) { return n >= N ? 0 : (U)(a >> n); } \
  IN U sar##N(U a, u32 n) { return (U)((S)a >> (n >= N ? N - 1 : n)); }
SHIFTS(16, u16, s16) SHIFTS(32, u32, s32) SHIFTS(64, u64, s64)
#define DIVIDE(N, U, S) \
  IN U udiv##N(U a, U b) { return b ? a / b : (U)-1; } IN U urem##N(U a, U b) { return b ? a % b : a; } \
  IN U sdiv##N(U a, U b) { return b == (U)-1 ? (U)(0 - a) : b ? (U)((S)a / (S)b) : (U)-1; } \
  IN U srem##N(U a, U b) { return b == (U)-1 ? 0 : b ? (U)((S)a % (S)b) : a; }
DIVIDE(16, u16, s16) DIVIDE(32, u32, s32) DIVIDE(64, u64, s64)
IN u32 fsl(u32 a, u32 b, u32 n) { return (u32)(((((u64)b << 32) | a) << n) >> 32); }
IN u32 fsr(u32 a, u32 b, u32 n) { return (u32)((((u64)b << 32) | a) >> n); }
IN u32 least(u32 a, u32 b) { return a < b ? a : b; }
IN u64 ubfe(u64 a, u32 p, u32 n, u32 w) { p &= 255; n &= 255; if (p >= w || !n) return 0; a >>= p; return n >= 64 ? a : a & ((1ul << n) - 1); }
IN u64 sbfe(u64 a, u32 p, u32 n, u32 w) { p &= 255; n &= 255; s64 v = w == 32 ? (s64)(s32)a : (s64)a; if (!n) return 0;
  v >>= p > 63 ? 63 : p; return n >= 64 ? (u64)v : (u64)((s64)((u64)v << (64 - n)) >> (64 - n)); }
IN u64 bfi(u64 a, u64 b, u32 p, u32 n, u32 w) { p &= 255; n &= 255; if (p >= w || !n) return b;
  u64 m = (n >= 64 ? ~0ul : (1ul << n) - 1) << p; return (b & ~m) | ((a << p) & m); }
IN u32 prmt(u32 a, u32 b, u32 sel) { u64 v = ((u64)b << 32) | a; u32 r = 0;
  for (u32 i = 0; i < 4; i++) { u32 s = (sel >> (4 * i)) & 15, x = (u32)(v >> (8 * (s & 7))) & 255; if (s & 8) x = x & 128 ? 255 : 0; r |= x << (8 * i); }
  return r; }
IN u32 clz32(u32 x) { return x ? (u32)__builtin_clz(x) : 32; }
IN u32 clz64(u64 x) { return x ? (u32)__builtin_clzl(x) : 64; }
IN u32 brev32(u32 x) { u32 r = 0; for (u32 i = 0; i < 32; i++) r |= ((x >> i) & 1) << (31 - i); return r; }
IN u64 brev64(u64 x) { return ((u64)brev32((u32)x) << 32) | brev32((u32)(x >> 32)); }
IN u32 bfind(u64 x) { return x ? 63 - (u32)__builtin_clzl(x) : 0xffffffffu; }
IN u32 lop3(u32 a, u32 b, u32 d, u32 t) { u32 r = 0;
  if (t & 1) r |= ~a & ~b & ~d; if (t & 2) r |= ~a & ~b & d; if (t & 4) r |= ~a & b & ~d; if (t & 8) r |= ~a & b & d;
  if (t & 16) r |= a & ~b & ~d; if (t & 32) r |= a & ~b & d; if (t & 64) r |= a & b & ~d; if (t & 128) r |= a & b & d; return r; }
IN u32 dp4(u32 a, u32 b, u32 d, int sa, int sb) { for (int i = 0; i < 4; i++) { u32 x = (a >> (8 * i)) & 255, y = (b >> (8 * i)) & 255;
  d += (u32)((sa ? (s32)(s8)x : (s32)x) * (sb ? (s32)(s8)y : (s32)y)); } return d; }
// What a lane hands to the warp, and what it gets back (`exec/warp.rs`).
struct Shuffle { u32 value, lane, clamp, mode, result, valid; };
struct Vote { u32 value, mode, result, all; u64 wide; };
IN u64 now_ns() { u32 lo, hi; asm volatile("rdtsc" : "=a"(lo), "=d"(hi)); return ((u64)hi << 32) | lo; }
struct Mma { u32 kind, a[4], b[2], c[4], d[4]; };
struct Matrix { u32 count, turned, row[4], out[4]; };
