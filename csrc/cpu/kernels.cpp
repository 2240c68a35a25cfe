// The kernels of one instruction set: this file is compiled once for each, and CPU_CAPABILITY names
// it.
#include "backward.h"
#include "forward.h"
#include "forward_jvp.h"
#include "scores.h"

namespace attnkernels::cpu {

#define ATTNKERNELS_NAME_(isa) kernels_##isa
#define ATTNKERNELS_NAME(isa) ATTNKERNELS_NAME_(isa)
#define ATTNKERNELS_STRING_(isa) #isa
#define ATTNKERNELS_STRING(isa) ATTNKERNELS_STRING_(isa)

extern const Kernels ATTNKERNELS_NAME(CPU_CAPABILITY);
const Kernels ATTNKERNELS_NAME(CPU_CAPABILITY) = {
    ATTNKERNELS_STRING(CPU_CAPABILITY),
    {forward<float>, scores<float>, backward<float>, pack_group<float>, forward_jvp<float>,
     scores_jvp<float>},
    {forward<double>, scores<double>, backward<double>, pack_group<double>, forward_jvp<double>,
     scores_jvp<double>},
};

}  // namespace attnkernels::cpu
