// SPDX-License-Identifier: Apache-2.0
// Several ranks as threads of one process: they meet over a real socket.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "performer/distributed/communicator.h"

namespace performer::testing {

// A socket that listens at a free port of this machine.
inline int listen_anywhere(int& port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(name);
  EXPECT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&name), size), 0);
  EXPECT_EQ(::listen(socket, 16), 0);
  EXPECT_EQ(::getsockname(socket, reinterpret_cast<sockaddr*>(&name), &size), 0);
  port = ntohs(name.sin_port);
  return socket;
}

// Runs `body` as each of `size` ranks; returns the message of each rank's error, "" for none.
inline std::vector<std::string> run_ranks(int size,
                                          const std::function<void(distributed::Communicator&)>& body,
                                          const distributed::ConnectOptions& options = {20, 20}) {
  std::vector<std::string> errors(static_cast<size_t>(size));
  int port = 0;
  const int listener = listen_anywhere(port);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      distributed::Environment environment;
      environment.rank = environment.local_rank = rank;
      environment.size = environment.local_size = size;
      environment.address = "127.0.0.1";
      environment.port = port;
      if (rank == 0) environment.listener = listener;
      try {
        const auto ranks = distributed::connect(environment, options);
        body(*ranks);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

inline void expect_no_errors(const std::vector<std::string>& errors) {
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

}  // namespace performer::testing
