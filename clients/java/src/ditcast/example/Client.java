package ditcast.example;

import ditcast.v1.DiffusionServiceGrpc;
import ditcast.v1.DiffusionServiceGrpc.DiffusionServiceBlockingStub;
import ditcast.v1.DiffusionServiceOuterClass.CancelGenerationRequest;
import ditcast.v1.DiffusionServiceOuterClass.GenerateRequest;
import ditcast.v1.DiffusionServiceOuterClass.GenerateResponse;
import ditcast.v1.Generation.Completed;
import ditcast.v1.Generation.GenerationEvent;
import io.grpc.Channel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Iterator;
import java.util.List;
import java.util.function.Consumer;

/** Generates with one server. */
final class Client {
    private final DiffusionServiceBlockingStub service;

    Client(Channel channel) {
        service = DiffusionServiceGrpc.newBlockingStub(channel);
    }

    /** What is left of a generation in the end. */
    record Result(List<byte[]> outputs, Completed completed) {}

    /** Generate, and read to the end; `onEvent` sees each event on the way. */
    Result generate(GenerateRequest request, Consumer<GenerationEvent> onEvent)
            throws DitcastException {
        OutputAssembly assembly = new OutputAssembly();
        Completed completed = null;
        try {
            for (Iterator<GenerateResponse> events = service.generate(request); events.hasNext(); ) {
                GenerationEvent event = events.next().getEvent();
                onEvent.accept(event);
                switch (event.getKindCase()) {
                    case OUTPUT_CHUNK -> assembly.add(event.getOutputChunk());
                    case RESTARTED -> assembly.clear();
                    case COMPLETED -> completed = event.getCompleted();
                    default -> { }
                }
            }
        } catch (StatusRuntimeException error) {
            throw DitcastException.from(error);
        }
        if (completed == null) {
            throw new DitcastException(Status.Code.DATA_LOSS, "the stream ended without a result");
        }
        return new Result(assembly.finish(completed.getReceipt()), completed);
    }

    /** Cancel a generation; its reader gets CANCELLED. */
    void cancel(String requestId) {
        service.cancelGeneration(CancelGenerationRequest.newBuilder().setRequestId(requestId).build());
    }
}
