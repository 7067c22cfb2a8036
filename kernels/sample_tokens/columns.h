// The only list of a row's parameters and of the steps that act on it: C++ makes `Knobs` and `Step`
// from these lines, and `columns.py` reads them for the reference and for Triton, so that the three
// cannot differ.
//
// The columns of `SamplingRows.table`, 8 bytes each, in their order.
//
#ifndef COLUMN
#define COLUMN(type, name, neutral)
#endif
#ifndef STEP
#define STEP(name)
#endif
#ifndef LATE_STEP
#define LATE_STEP(name)
#endif
//     type     name                 value that changes nothing
COLUMN(double,  inverse_temperature, 1.0)
COLUMN(double,  temperature,         1.0)
COLUMN(double,  dynatemp_range,      0.0)
COLUMN(double,  dynatemp_exponent,   1.0)
COLUMN(double,  top_n_sigma,         0.0)
COLUMN(double,  top_p,               1.0)
COLUMN(double,  min_p,               0.0)
COLUMN(double,  least_probability,   0.0)
COLUMN(double,  typical_p,           1.0)
COLUMN(double,  xtc_probability,     0.0)
COLUMN(double,  xtc_threshold,       0.1)
COLUMN(int64_t, top_k,               0)
COLUMN(int64_t, seed,                0)
COLUMN(int64_t, index,               0)
COLUMN(int64_t, position,            0)

// The steps, as requests name them, in the usual order. Late ones look at the masses of the tokens
// that are left; each is a function of its name in `reference.py` and a struct in `steps.h`.
STEP(top_n_sigma)
STEP(temperature)
STEP(top_k)
STEP(top_p)
STEP(min_p)
LATE_STEP(typical_p)
LATE_STEP(xtc)

#undef COLUMN
#undef STEP
#undef LATE_STEP
