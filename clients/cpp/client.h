// Runs one generation: its events as they come, and its result.
#pragma once

#include <functional>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "ditcast/v1/diffusion_service.grpc.pb.h"
#include "errors.h"
#include "outputs.h"

namespace ditcast {

// What is left of a generation in the end.
struct Result {
  std::vector<Output> outputs;
  v1::Completed completed;
};

// Generate, and read to the end; `on_event` sees each event on the way. Throws an Error.
inline Result Generate(v1::DiffusionService::StubInterface& service,
                       const v1::GenerateRequest& request,
                       const std::function<void(const v1::GenerationEvent&)>& on_event) {
  grpc::ClientContext context;
  const auto reader = service.Generate(&context, request);
  OutputAssembly assembly;
  Result result;
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    const v1::GenerationEvent& event = response.event();
    on_event(event);
    if (event.has_output_chunk()) assembly.Add(event.output_chunk());
    if (event.has_restarted()) assembly.Clear();
    if (event.has_completed()) result.completed = event.completed();
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) throw Error::From(status);
  if (!result.completed.has_receipt()) {
    throw Error(grpc::StatusCode::DATA_LOSS, "the stream ended without a result");
  }
  result.outputs = assembly.Finish(result.completed.receipt());
  return result;
}

}  // namespace ditcast
