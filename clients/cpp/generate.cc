// Generates a picture with a line of progress: generate 127.0.0.1:50051 "a red circle" out.png

#include <csignal>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <thread>

#include "client.h"

namespace {

namespace v1 = ditcast::v1;

// Show a computed step as a block, one that the cache spared as a dot.
void Show(const v1::GenerationEvent& event) {
  if (event.has_step_completed()) {
    const bool computed = event.step_completed().cache_decision() == v1::CACHE_DECISION_COMPUTED;
    std::cerr << (computed ? "█" : "·") << std::flush;
  } else if (event.has_restarted()) {
    std::cerr << "\nbegins again: " << event.restarted().reason() << "\n";
  } else if (event.has_completed()) {
    std::cerr << "\n";
  }
}

// An id of one's own, so that the generation can be cancelled before its first event has come.
std::string NewId() {
  std::random_device random;
  std::ostringstream id;
  for (int part = 0; part < 4; ++part) id << std::hex << random() << (part < 3 ? "-" : "");
  return id.str();
}

// Cancel the generation when Ctrl-C comes. All threads have SIGINT blocked: this one waits for it.
void CancelOn(const sigset_t& interrupt, v1::DiffusionService::Stub& service, const std::string& id) {
  int signal = 0;
  sigwait(&interrupt, &signal);
  grpc::ClientContext context;
  v1::CancelGenerationRequest request;
  v1::CancelGenerationResponse response;
  request.set_request_id(id);
  service.CancelGeneration(&context, request, &response);
}

void Run(v1::DiffusionService::Stub& service, v1::GenerateRequest& request, const char* file) {
  const ditcast::Result result = ditcast::Generate(service, request, Show);
  const ditcast::Output& output = result.outputs.at(0);
  std::ofstream(file, std::ios::binary) << output.data;
  std::cout << file << ": " << output.media_type << ", seed "
            << result.completed.receipt().parameters().seed() << ", "
            << result.completed.cache().cached_steps_size() << " steps cached\n";
}

void Tell(const ditcast::Error& error) {
  std::cerr << "status " << error.code << " (" << error.reason << "): " << error.what() << "\n";
  for (const auto& each : error.field_violations) {
    std::cerr << "  " << each.field << ": " << each.description << "\n";
  }
  if (error.retry_delay.count() > 0) {
    std::cerr << "  try again in " << error.retry_delay.count() << " ms\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: generate ADDRESS PROMPT FILE\n";
    return 2;
  }
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);  // Before gRPC starts threads of its own.

  const auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  const std::shared_ptr<v1::DiffusionService::Stub> service = v1::DiffusionService::NewStub(channel);
  v1::GenerateRequest request;
  request.set_request_id(NewId());
  request.set_prompt(argv[2]);
  request.set_seed(42);
  std::thread([interrupt, service, id = request.request_id()] {
    CancelOn(interrupt, *service, id);
  }).detach();
  try {
    Run(*service, request, argv[3]);
  } catch (const ditcast::Error& error) {
    Tell(error);
    return 1;
  }
  return 0;
}
