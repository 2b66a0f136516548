"""Plain C loops on int8 codes: what a header writes down beside its constants."""

PROLOGUE = """\
/* Written by jqz: a quantized network in integers. Include it in one source file; run() is at the end. */
#include <stdint.h>
#include <string.h>
"""

_RESCALE = """
/* acc * mantissa * 2**(exponent - 31), rounded twice as gemmlowp does: the product with ties up, the shift away. */
static inline int32_t jqz_rescaled(int32_t acc, int32_t mantissa, int32_t exponent) {
  const int32_t up = exponent > 0 ? exponent : 0, limit = INT32_MAX >> (up < 30 ? up : 30);
  const int64_t within = acc < -limit ? -limit : acc > limit ? limit : acc;
  const int64_t product = within * ((int64_t)1 << (up < 30 ? up : 30)) * mantissa;
  const int64_t high = (product + (product < 0 ? 1 - (1 << 30) : 1 << 30)) / ((int64_t)1 << 31);
  const int64_t half = ((int64_t)1 << (up - exponent)) >> 1;
  return (int32_t)(high < 0 ? -((half - high) >> (up - exponent)) : (high + half) >> (up - exponent));
}

static inline int8_t jqz_code(int32_t level, int32_t zero, int32_t low, int32_t high) {
  const int64_t code = (int64_t)level + zero;
  return (int8_t)(code < low ? low : code > high ? high : code);
}
"""

_LAYER = """
/* A convolution, or a dense layer as one of single pixels; images are (batch, height, width, channels). */
typedef struct {
  int32_t batch, height, width, channels, out_height, out_width, out_channels;
  int32_t kernel_height, kernel_width, groups, stride_y, stride_x, dilation_y, dilation_x, top, left;
  int32_t zero, result_zero, low, high;
  const int8_t *weights, *exponent;
  const int32_t *bias, *mantissa;
} jqz_layer;
"""

_PRODUCT = """
static inline void jqz_{name}(const int8_t *x, int8_t *y, const jqz_layer *l) {{
  const int32_t ins = l->channels / l->groups, outs = l->out_channels / l->groups;
  for (int32_t b = 0; b < l->batch; b++)
    for (int32_t i = 0; i < l->out_height; i++)
      for (int32_t j = 0; j < l->out_width; j++)
        for (int32_t o = 0; o < l->out_channels; o++) {{
          const int8_t *w = l->weights + o * l->kernel_height * l->kernel_width * ins;
          int32_t acc = l->bias[o];
          for (int32_t m = 0; m < l->kernel_height; m++)
            for (int32_t n = 0; n < l->kernel_width; n++, w += ins) {{
              const int32_t row = i * l->stride_y + m * l->dilation_y - l->top;
              const int32_t column = j * l->stride_x + n * l->dilation_x - l->left;
              if (row < 0 || row >= l->height || column < 0 || column >= l->width) continue;
              const int8_t *pixel = x + ((b * l->height + row) * l->width + column) * l->channels + o / outs * ins;
              for (int32_t k = 0; k < ins; k++) acc += {term};
            }}
          *y++ = jqz_code(jqz_rescaled(acc, l->mantissa[o], l->exponent[o]), l->result_zero, l->low, l->high);
        }}
}}
"""

_SHIFT = """
/* x times a signed power of two: w is 0 for 0, else 1 + the shift with the sign of the weight. */
static inline int32_t jqz_shifted(int32_t x, int32_t w) {
  const int32_t shifted = w == 0 ? 0 : (int32_t)((uint32_t)x << ((w < 0 ? -w : w) - 1));
  return w < 0 ? -shifted : shifted;
}
"""

_WINDOWS = """
typedef struct {
  int32_t batch, height, width, channels, out_height, out_width;
  int32_t window_y, window_x, stride_y, stride_x, top, left;
} jqz_windows;
"""

_MAXIMA = """
static inline void jqz_maxima(const int8_t *x, int8_t *y, const jqz_windows *l) {
  for (int32_t b = 0; b < l->batch; b++)
    for (int32_t i = 0; i < l->out_height; i++)
      for (int32_t j = 0; j < l->out_width; j++)
        for (int32_t k = 0; k < l->channels; k++) {
          int8_t most = INT8_MIN;
          for (int32_t m = 0; m < l->window_y; m++)
            for (int32_t n = 0; n < l->window_x; n++) {
              const int32_t row = i * l->stride_y + m - l->top, column = j * l->stride_x + n - l->left;
              if (row < 0 || row >= l->height || column < 0 || column >= l->width) continue;
              const int8_t code = x[((b * l->height + row) * l->width + column) * l->channels + k];
              most = code > most ? code : most;
            }
          *y++ = most;
        }
}
"""

_TOTAL = """
typedef struct {
  int32_t count, zero[2], result_zero, low, high, mantissa[3], exponent[3];
} jqz_total;
"""

_SUMS = """
/* Both terms with 20 fraction bits, in units of twice the larger scale. */
static inline void jqz_sums(const int8_t *a, const int8_t *b, int8_t *y, const jqz_total *l) {
  for (int32_t i = 0; i < l->count; i++) {
    const int32_t first = jqz_rescaled((a[i] - l->zero[0]) * (1 << 20), l->mantissa[0], l->exponent[0]);
    const int32_t second = jqz_rescaled((b[i] - l->zero[1]) * (1 << 20), l->mantissa[1], l->exponent[1]);
    const int32_t sum = jqz_rescaled(first + second, l->mantissa[2], l->exponent[2]);
    y[i] = jqz_code(sum, l->result_zero, l->low, l->high);
  }
}
"""

_CHANGE = """
typedef struct {
  int32_t count, zero, result_zero, low, high, mantissa, exponent;
} jqz_change;
"""

_RESCALING = """
/* Codes on one grid to codes on another. */
static inline void jqz_rescaling(const int8_t *x, int8_t *y, const jqz_change *l) {
  for (int32_t i = 0; i < l->count; i++)
    y[i] = jqz_code(jqz_rescaled(x[i] - l->zero, l->mantissa, l->exponent), l->result_zero, l->low, l->high);
}
"""

_COPIED = """
/* Between two arrays whose neighbours along each axis are so far apart. */
static inline void jqz_copied(const int8_t *x, int8_t *y, const int32_t *sizes, const int32_t *from,
                              const int32_t *to) {
  for (int32_t i = 0; i < sizes[0]; i++)
    for (int32_t j = 0; j < sizes[1]; j++)
      for (int32_t k = 0; k < sizes[2]; k++)
        for (int32_t l = 0; l < sizes[3]; l++)
          y[i * to[0] + j * to[1] + k * to[2] + l * to[3]] = x[i * from[0] + j * from[1] + k * from[2] + l * from[3]];
}
"""

#: The struct that each loop reads its numbers from.
STRUCTS = {
    "product": "layer",
    "shift_product": "layer",
    "maxima": "windows",
    "sums": "total",
    "rescaling": "change",
}

#: What stands in a header, in this order, by name.
TEXTS = {
    "rescaled": _RESCALE,
    "layer": _LAYER,
    "product": _PRODUCT.format(name="product", term="(pixel[k] - l->zero) * w[k]"),
    "shifted": _SHIFT,
    "shift_product": _PRODUCT.format(name="shift_product", term="jqz_shifted(pixel[k] - l->zero, w[k])"),
    "windows": _WINDOWS,
    "maxima": _MAXIMA,
    "total": _TOTAL,
    "sums": _SUMS,
    "change": _CHANGE,
    "rescaling": _RESCALING,
    "copied": _COPIED,
}
