/* What code lowered by MLIR calls. */
#include <stdint.h>
#include <string.h>

/* An unranked memref: its rank, and a descriptor {allocated, aligned, offset, sizes[rank], strides[rank]}. */
typedef struct {
    int64_t rank;
    int64_t *descriptor;
} Unranked;

static void copy(char *to, const int64_t *to_strides, const char *from, const int64_t *from_strides,
                 const int64_t *sizes, int64_t rank, int64_t element) {
    if (rank == 0) {
        memcpy(to, from, element);
        return;
    }
    for (int64_t i = 0; i < sizes[0]; i++)
        copy(to + i * to_strides[0] * element, to_strides + 1, from + i * from_strides[0] * element, from_strides + 1,
             sizes + 1, rank - 1, element);
}

void memrefCopy(int64_t element, Unranked *from, Unranked *to) {
    int64_t rank = from->rank, *a = from->descriptor, *b = to->descriptor;
    copy((char *)b[1] + b[2] * element, b + 3 + rank, (const char *)a[1] + a[2] * element, a + 3 + rank, a + 3, rank,
         element);
}

/* float32 to bfloat16, ties to even; LLVM expects the 16 bits in a vector register. */
float __truncsfbf2(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : bits + 0x7fff + ((bits >> 16) & 1);
    bits >>= 16;
    memcpy(&value, &bits, 4);
    return value;
}
