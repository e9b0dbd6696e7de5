// SPDX-License-Identifier: Apache-2.0
#include "performer/data/batch_queue.h"

#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "tests/data/sequences.h"

namespace performer::data::test {
namespace {

class BatchQueueTest : public ::testing::Test {
 protected:
  BatchQueueTest() {
    config_.length = 32;
    config_.batch_tokens = 64;
  }
  MemoryCorpus corpus_ = proteins(random_sequences(20, 1));
  DataConfig config_;
};

TEST_F(BatchQueueTest, SameBatchesAndCursorsAsTheStream) {
  BatchStream stream(corpus_, config_, "causal");
  BatchQueue queue(training_batches(corpus_, config_, "causal", {}));
  for (int i = 0; i < 40; ++i) {  // more than an epoch
    const Batch expected = stream.next();
    const QueuedBatch got = queue.next();
    EXPECT_EQ(got.batch.inputs, expected.inputs) << "batch " << i;
    EXPECT_EQ(got.cursor.epoch, stream.cursor().epoch);
    EXPECT_EQ(got.cursor.sequence, stream.cursor().sequence);
    EXPECT_EQ(got.cursor.offset, stream.cursor().offset);
    EXPECT_EQ(got.crops.sequences, stream.crops().sequences);
  }
}

TEST_F(BatchQueueTest, ContinuesFromTheCursorOfTheLastBatchTaken) {
  BatchQueue whole(training_batches(corpus_, config_, "causal", {}));
  Cursor cursor;
  {
    BatchQueue first(training_batches(corpus_, config_, "causal", {}));
    for (int i = 0; i < 7; ++i) {
      cursor = first.next().cursor;
      whole.next();
    }
  }  // destroyed while it waits for room: must not hang
  BatchQueue second(training_batches(corpus_, config_, "causal", cursor));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(second.next().batch.inputs, whole.next().batch.inputs);
}

// For the thread sanitizer, mostly: queues over one corpus that are read, and given up, at every moment.
TEST_F(BatchQueueTest, QueuesShareACorpusAndMayBeGivenUpAtAnyMoment) {
  const Batch expected = BatchStream(corpus_, config_, "causal").next();
  for (int taken = 0; taken < 60; ++taken) {
    BatchQueue one(training_batches(corpus_, config_, "causal", {}), 1 + taken % 3);
    BatchQueue other(training_batches(corpus_, config_, "causal", {}));
    for (int i = 0; i < taken % 6; ++i) {
      const QueuedBatch batch = one.next();
      if (i == 0) {
        EXPECT_EQ(batch.batch.inputs, expected.inputs);
      }
    }
    EXPECT_EQ(other.next().batch.inputs, expected.inputs);
  }
}

TEST(BatchQueue, RethrowsWhatTheSourceThrewInItsTurn) {
  int made = 0;
  BatchQueue queue([&made]() -> QueuedBatch {
    if (++made == 3) throw InputError("the third");
    return {};
  });
  queue.next();
  queue.next();
  EXPECT_THROW(queue.next(), InputError);
  EXPECT_THROW(queue.next(), InputError) << "again, instead of waiting for ever";
}

}  // namespace
}  // namespace performer::data::test
