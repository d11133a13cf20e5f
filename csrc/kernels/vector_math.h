// SPDX-License-Identifier: Apache-2.0
// exp, tanh and erf on sixteen lanes. Polynomials of Cephes (S. Moshier, expf.c, tanhf.c, ndtrf.c); NaN passes through.
#pragma once

#include "simd.h"

namespace linnet::LINNET_TIER {

// exp(0) is exactly 1; below -87.33 (the least normal number) the result is 0, above 88.37 it stays there.
LINNET_INLINE Floats exponential(Floats x) {
    const Mask underflow = less(x, splat(-87.33f));
    x = smallest(splat(88.3762626647949f), greatest(splat(-87.33f), x));  // this operand order keeps NaN
    const Floats n = round_even(x * splat(1.44269504088896341f));
    Floats r = fnma(n, splat(0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    Floats p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    const Floats power = as_floats(shift_left<23>(to_ints(n) + splat_int(127)));
    return select(underflow, splat(0.0f), p * power);
}

// log(1 + y) for y of 0 to 1 (Cephes logf.c, whose reduced argument is y itself or (y - 1) / 2: nothing cancels).
LINNET_INLINE Floats logarithm_of_one_plus(Floats y) {
    const Mask small = less(y, splat(0.41421356237f));
    const Floats x = select(small, y, (y - splat(1.0f)) * splat(0.5f));
    const Floats halved = select(small, splat(0.0f), splat(1.0f));
    const Floats z = x * x;
    Floats p = splat(7.0376836292e-2f);
    p = fma(p, x, splat(-1.1514610310e-1f));
    p = fma(p, x, splat(1.1676998740e-1f));
    p = fma(p, x, splat(-1.2420140846e-1f));
    p = fma(p, x, splat(1.4249322787e-1f));
    p = fma(p, x, splat(-1.6668057665e-1f));
    p = fma(p, x, splat(2.0000714765e-1f));
    p = fma(p, x, splat(-2.4999993993e-1f));
    p = fma(p, x, splat(3.3333331174e-1f));
    Floats tail = fma(halved, splat(-2.12194440e-4f), x * z * p);
    tail = fma(z, splat(-0.5f), tail);
    return fma(halved, splat(0.693359375f), x + tail);
}

// log(1 + exp(x)) without overflow.
LINNET_INLINE Floats soft_plus(Floats x) {
    return greatest(splat(0.0f), x) + logarithm_of_one_plus(exponential(splat(0.0f) - absolute(x)));
}

LINNET_INLINE Floats with_sign_of(Floats magnitude, Floats sign) {
    return as_floats((as_ints(magnitude) & splat_int(0x7fffffff)) | (as_ints(sign) & splat_int(int32_t(0x80000000u))));
}

LINNET_INLINE Floats hyperbolic_tangent(Floats x) {
    const Floats z = x * x;
    Floats p = splat(-5.70498872745e-3f);
    p = fma(p, z, splat(2.06390887954e-2f));
    p = fma(p, z, splat(-5.37397155531e-2f));
    p = fma(p, z, splat(1.33314422036e-1f));
    p = fma(p, z, splat(-3.33332819422e-1f));
    const Floats small = fma(p * z, x, x);
    const Floats magnitude = smallest(splat(20.0f), absolute(x));
    const Floats large = splat(1.0f) - splat(2.0f) / (exponential(magnitude + magnitude) + splat(1.0f));
    return select(less(absolute(x), splat(0.625f)), small, with_sign_of(large, x));
}

// erfc(a) for a >= 1.
LINNET_INLINE Floats complementary_error_tail(Floats a) {
    const Floats q = splat(1.0f) / a;
    const Floats y = q * q;
    Floats near = splat(2.326819970068386e-2f);
    near = fma(near, y, splat(-1.387039388740657e-1f));
    near = fma(near, y, splat(3.687424674597105e-1f));
    near = fma(near, y, splat(-5.824733027278666e-1f));
    near = fma(near, y, splat(6.210004621745983e-1f));
    near = fma(near, y, splat(-4.944515323274145e-1f));
    near = fma(near, y, splat(3.404879937665872e-1f));
    near = fma(near, y, splat(-2.741127028184656e-1f));
    near = fma(near, y, splat(5.638259427386472e-1f));
    Floats far = splat(-1.047766399936249e+1f);
    far = fma(far, y, splat(1.297719955372516e+1f));
    far = fma(far, y, splat(-7.495518717768503e+0f));
    far = fma(far, y, splat(2.921019019210786e+0f));
    far = fma(far, y, splat(-1.015265279202700e+0f));
    far = fma(far, y, splat(4.218463358204948e-1f));
    far = fma(far, y, splat(-2.820767439740514e-1f));
    far = fma(far, y, splat(5.641895067754075e-1f));
    const Floats p = select(less(a, splat(2.0f)), near, far);
    return exponential(splat(0.0f) - a * a) * q * p;
}

// 1 + erf(x), without cancellation for negative x: what gelu multiplies x / 2 with.
LINNET_INLINE Floats one_plus_error_function(Floats x) {
    const Floats z = x * x;
    Floats p = splat(7.853861353153693e-5f);
    p = fma(p, z, splat(-8.010193625184903e-4f));
    p = fma(p, z, splat(5.188327685732524e-3f));
    p = fma(p, z, splat(-2.685381193529856e-2f));
    p = fma(p, z, splat(1.128358514861418e-1f));
    p = fma(p, z, splat(-3.761262582423300e-1f));
    p = fma(p, z, splat(1.128379165726710e+0f));
    const Floats small = fma(p, x, splat(1.0f));
    const Floats tail = complementary_error_tail(greatest(splat(1.0f), absolute(x)));
    const Floats large = select(less(x, splat(0.0f)), tail, splat(2.0f) - tail);
    return select(less(absolute(x), splat(1.0f)), small, large);
}

}  // namespace linnet::LINNET_TIER
