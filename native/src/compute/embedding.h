// Looks up a token in the INT4 table of embeddings.
#pragma once

#include "model/matrix.h"

namespace mobilemoe {

// The first `count` weights of one output of an Axis::in matrix, in fp32.
void read_row(const Matrix& matrix, int output, int count, float* weights);

}  // namespace mobilemoe
