// What a call that did not succeed says: the status, and the google.rpc details that came with it.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include <grpcpp/support/status.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ditcast {

// A field that was refused: its path from the request in snake case, and why.
struct FieldViolation {
  std::string field;
  std::string description;
};

// A call or a generation that did not succeed.
class Error : public std::runtime_error {
 public:
  Error(grpc::StatusCode code, const std::string& message)
      : std::runtime_error(message), code(code) {}

  // Read a status with its details.
  static Error From(const grpc::Status& status) {
    Error error(status.error_code(), status.error_message());
    google::rpc::Status details;
    details.ParseFromString(status.error_details());
    for (const auto& detail : details.details()) error.Read(detail);
    return error;
  }

  grpc::StatusCode code;
  std::string reason;  // In UPPER_SNAKE; empty where the status is not the server's own.
  std::vector<FieldViolation> field_violations;  // Every field that was refused.
  std::chrono::milliseconds retry_delay{0};      // 0: trying again does not help.

 private:
  void Read(const google::protobuf::Any& detail) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest refused;
    google::rpc::PreconditionFailure failed;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&info)) {
      if (info.domain() == "ditcast") reason = info.reason();
    } else if (detail.UnpackTo(&refused)) {
      for (const auto& each : refused.field_violations()) {
        field_violations.push_back({each.field(), each.description()});
      }
    } else if (detail.UnpackTo(&failed)) {
      for (const auto& each : failed.violations()) {
        field_violations.push_back({each.subject(), each.description()});
      }
    } else if (detail.UnpackTo(&retry)) {
      retry_delay = std::chrono::milliseconds(retry.retry_delay().seconds() * 1000 +
                                              retry.retry_delay().nanos() / 1000000);
    }
  }
};

}  // namespace ditcast
