// SPDX-License-Identifier: Apache-2.0
// The ranks of a machine read the files once and map one copy: here ranks are threads.
#include "performer/train/run_data.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "performer/base/error.h"
#include "tests/distributed/ranks.h"
#include "tests/train/runs.h"

namespace performer::train {
namespace {

using testing::expect_no_errors;
using ::testing::HasSubstr;
using testing::run_ranks;

class RunDataTest : public testing::RunTest {
 protected:
  static ino_t file_of(const data::Corpus& corpus) {
    struct stat status {};
    EXPECT_EQ(::fstat(dynamic_cast<const data::SequenceStore&>(corpus).file().descriptor(), &status), 0);
    return status.st_ino;
  }
  static void expect_same(const data::Corpus& found, const data::Corpus& expected) {
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_EQ(found.fingerprint(), expected.fingerprint());
    EXPECT_EQ(summary(found.report()), summary(expected.report()));
    for (int64_t i = 0; i < found.size(); ++i) {
      const auto a = found.tokens(i), b = expected.tokens(i);
      EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << "sequence " << i;
    }
  }
  // Reads as `ranks` ranks on `machines` machines, and shows each rank's data to `look` while all hold
  // theirs.
  void read(const LanguageModelRequest& request, int ranks, int machines,
            const std::function<void(int rank, const RunData& data)>& look) {
    expect_no_errors(run_ranks(ranks, [&](distributed::Communicator& communicator) {
      distributed::Place place = distributed::own_place();
      place.machine += static_cast<uint64_t>(communicator.rank() % machines);
      distributed::Machine machine(communicator, place);
      RunData data(request, machine);
      data.read(std::nullopt, folder_ / "");
      look(communicator.rank(), data);
      communicator.sum(at::zeros({1}));
    }));
  }
  // What one process reads.
  class Alone {
   public:
    Alone(const LanguageModelRequest& request, const std::string& folder)
        : ranks_(distributed::single_rank()), machine_(*ranks_), data_(request, machine_) {
      data_.read(std::nullopt, folder);
    }
    TaskParts parts() const { return data_.parts(); }

   private:
    std::unique_ptr<distributed::Communicator> ranks_;
    distributed::Machine machine_;
    RunData data_;
  };
};

TEST_F(RunDataTest, AMachineHasOneCopy) {
  const LanguageModelRequest made = request("run");
  const Alone alone(made, folder_ / "");
  for (const int machines : {1, 2}) {
    std::vector<ino_t> train(4), valid(4);
    read(made, 4, machines, [&](int rank, const RunData& data) {
      const TaskParts parts = data.parts();
      expect_same(parts.train, alone.parts().train);
      ASSERT_NE(parts.valid, nullptr);
      expect_same(*parts.valid, *alone.parts().valid);
      train[static_cast<size_t>(rank)] = file_of(parts.train);
      valid[static_cast<size_t>(rank)] = file_of(*parts.valid);
    });
    EXPECT_EQ(std::set(train.begin(), train.end()).size(), static_cast<size_t>(machines));
    EXPECT_EQ(std::set(valid.begin(), valid.end()).size(), static_cast<size_t>(machines));
    for (size_t rank = 0; rank < 4; ++rank)
      EXPECT_EQ(train[rank], train[rank % static_cast<size_t>(machines)]);
  }
}

TEST_F(RunDataTest, LabelsAndWeightsAreThoseOfTheFirstRank) {
  std::string table = "id\tlabel\tweight\n";
  for (int i = 0; i < 40; ++i) {
    if (i % 5 != 0) table += fmt::format("p{}\t{}\t{}\n", i, i % 3 == 0 ? "few" : "many", 1 + i % 2);
  }
  write_file(folder_ / "labels.tsv", table);
  LanguageModelRequest made = request("run");
  made.task.kind = "sequence-classification";
  made.task.labels = folder_ / "labels.tsv";
  const Alone alone(made, folder_ / "");
  const TaskParts expected = alone.parts();
  ASSERT_GT(expected.valid->size(), 0);
  EXPECT_EQ(expected.train.size() + expected.valid->size(), 32);
  read(made, 3, 1, [&](int, const RunData& data) {
    const TaskParts parts = data.parts();
    expect_same(parts.train, expected.train);
    EXPECT_THAT(parts.train_labels.classes(), ::testing::ElementsAre("few", "many"));
    for (const auto& [found, one] : {std::pair(&parts.train_labels, &expected.train_labels),
                                     std::pair(parts.valid_labels, expected.valid_labels)}) {
      ASSERT_EQ(found->size(), one->size());
      EXPECT_EQ(found->fingerprint(), one->fingerprint());
      EXPECT_TRUE(std::ranges::equal(found->weights(), one->weights()));
      for (int64_t i = 0; i < found->size(); ++i)
        EXPECT_TRUE(std::ranges::equal(found->values(i), one->values(i)));
    }
  });
}

TEST_F(RunDataTest, NothingIsHeldOutAnywhere) {
  LanguageModelRequest made = request("run");
  made.data.holdout = 1e-9;
  read(made, 2, 1, [](int, const RunData& data) { EXPECT_EQ(data.parts().valid, nullptr); });
}

TEST_F(RunDataTest, AnErrorOfTheReaderEndsAll) {
  write_file(folder_ / "bad.fasta", ">a\nACD\n>b\nAC1\n");
  const std::vector<std::string> errors = run_ranks(3, [&](distributed::Communicator& communicator) {
    LanguageModelRequest made = request("run");
    made.train_files = {folder_ / "bad.fasta"};
    made.options.ranks = &communicator;
    run(made);
  });
  EXPECT_THAT(errors[0], HasSubstr("record 2 (b), line 4"));
  for (const size_t rank : {1, 2}) EXPECT_EQ(errors[rank], "rank 0 failed: " + errors[0]);
}

}  // namespace
}  // namespace performer::train
