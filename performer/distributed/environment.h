// SPDX-License-Identifier: Apache-2.0
// Which rank this process is, as its launcher says in environment variables: torchrun, Open MPI's mpirun,
// launchers that speak PMI (MPICH, Intel MPI) and SLURM's srun.
#pragma once

#include <functional>
#include <string>

namespace performer::distributed {

struct Environment {
  int rank = 0, size = 1;              // of all processes that train together
  int local_rank = 0, local_size = 1;  // of those on this machine, as far as the launcher tells
  std::string address;  // where the ranks meet: a host of rank 0's machine, and a port; "" for one rank
  int port = 0;
  std::string launcher;      // "torchrun", "mpirun", "PMI", "srun", or "" when nobody launched this process
  bool agent_store = false;  // torchrun serves the meeting place itself, so that rank 0 must not
  int attempt = 0;           // how often the launcher started the job again after a failure
  int listener = -1;         // a socket that listens at the port already, inherited by rank 0; -1: none
};

// Reads the first of these that is there:
//   RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; LOCAL_RANK, LOCAL_WORLD_SIZE where set   (torchrun)
//   OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE                                (mpirun)
//   PMI_RANK, PMI_SIZE; MPI_LOCALRANKID, MPI_LOCALNRANKS where set                       (MPICH, Intel MPI)
//   SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE         (srun)
// Except under torchrun, MASTER_ADDR may be left out where all ranks are on this machine or SLURM names the
// first host, and MASTER_PORT follows from the job's name. `get` is asked for each variable and gives null
// for one that is not set. Throws UsageError naming the variable that is missing, no number, or contradicts
// another.
using Variables = std::function<const char*(const char* name)>;
Environment read_environment(const Variables& get);
Environment read_environment();  // of this process

// The first host of a list as SLURM writes it: "node[03-05,9],x" -> "node03".
std::string first_host(const std::string& list);

}  // namespace performer::distributed
