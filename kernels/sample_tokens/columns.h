// The columns of `SamplingRows.table`: what a row's token is drawn with, 8 bytes each, in the order
// in which they lie. C++ makes `Knobs` of these lines, and `columns.py` reads them for the
// reference and for Triton, so that the three cannot differ.
//
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
#undef COLUMN
