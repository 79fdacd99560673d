// Outputs, put together from chunks and checked against the receipt.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <openssl/sha.h>

#include "ditcast/v1/generation.pb.h"
#include "errors.h"

namespace ditcast {

// A picture, a video or latents, whole.
struct Output {
  std::string media_type;
  std::string data;
};

// Takes the chunks of one generation.
class OutputAssembly {
 public:
  // Take one chunk; those of one output come in order.
  void Add(const v1::OutputChunk& chunk) {
    const int index = chunk.output_index();
    if (chunk.offset() == 0) parts_[index] = Output{chunk.media_type(), ""};
    const auto part = parts_.find(index);
    if (part == parts_.end() || static_cast<int64_t>(part->second.data.size()) != chunk.offset()) {
      throw Lost(index, "has a chunk that does not fit");
    }
    part->second.data += chunk.data();
  }

  // Forget everything: the generation begins again, and what came is void.
  void Clear() { parts_.clear(); }

  // Give the outputs, each checked against its SHA-256 in the receipt.
  std::vector<Output> Finish(const v1::Receipt& receipt) const {
    std::vector<Output> outputs;
    for (const auto& digest : receipt.outputs()) outputs.push_back(Check(digest));
    return outputs;
  }

 private:
  Output Check(const v1::OutputDigest& digest) const {
    const auto part = parts_.find(digest.output_index());
    if (part == parts_.end() ||
        static_cast<int64_t>(part->second.data.size()) != digest.size_bytes()) {
      throw Lost(digest.output_index(), "is not whole");
    }
    const std::string& data = part->second.data;
    unsigned char found[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), found);
    if (digest.sha256() != std::string(found, found + sizeof found)) {
      throw Lost(digest.output_index(), "is not what its receipt says");
    }
    return part->second;
  }

  static Error Lost(int index, const std::string& how) {
    return Error(grpc::StatusCode::DATA_LOSS, "output " + std::to_string(index) + " " + how);
  }

  std::map<int, Output> parts_;
};

}  // namespace ditcast
