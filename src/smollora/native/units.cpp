// What the kernels are told once: whose threads to use, and whether Linux gives the matrix units.

#include "units.h"

#ifdef SMOLLORA_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace smollora;

extern "C" {

// What OpenMP runtime PyTorch has; all may be null, then one thread does the work. Returns 1 if the
// matrix units may be used (Linux gives them on request).
int set_threads(void* start, void* number, void* count) {
  start_threads = reinterpret_cast<Start>(start);
  thread_number = reinterpret_cast<Count>(number);
  thread_count = reinterpret_cast<Count>(count);
#ifdef SMOLLORA_AMX
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, tile data
#else
  return 1;
#endif
}

}  // extern "C"
