package ditcast.example;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.PreconditionFailure;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;

/** What a call that did not succeed says: the status, and the google.rpc details that came with it. */
final class DitcastException extends Exception {
    private static final Metadata.Key<byte[]> DETAILS =
            Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

    final Status.Code code;
    /** In UPPER_SNAKE; empty where the status is not the server's own. */
    private String reason = "";
    /** Every field that was refused, by its path from the request in snake case, and why. */
    private final Map<String, String> fieldViolations = new LinkedHashMap<>();
    /** Zero: trying again does not help. */
    private Duration retryDelay = Duration.ZERO;

    DitcastException(Status.Code code, String message) {
        super(message);
        this.code = code;
    }

    /** Read a status with its details. */
    static DitcastException from(StatusRuntimeException error) {
        DitcastException made =
                new DitcastException(error.getStatus().getCode(), error.getStatus().getDescription());
        byte[] details = error.getTrailers() == null ? null : error.getTrailers().get(DETAILS);
        try {
            if (details != null) {
                for (Any detail : com.google.rpc.Status.parseFrom(details).getDetailsList()) {
                    made.read(detail);
                }
            }
        } catch (InvalidProtocolBufferException notOurs) {
            made.addSuppressed(notOurs); // A proxy's: the status alone has to do.
        }
        return made;
    }

    String reason() {
        return reason;
    }

    Map<String, String> fieldViolations() {
        return fieldViolations;
    }

    Duration retryDelay() {
        return retryDelay;
    }

    private void read(Any detail) throws InvalidProtocolBufferException {
        if (detail.is(ErrorInfo.class)) {
            ErrorInfo info = detail.unpack(ErrorInfo.class);
            reason = info.getDomain().equals("ditcast") ? info.getReason() : reason;
        } else if (detail.is(BadRequest.class)) {
            detail.unpack(BadRequest.class).getFieldViolationsList()
                    .forEach(each -> fieldViolations.put(each.getField(), each.getDescription()));
        } else if (detail.is(PreconditionFailure.class)) {
            detail.unpack(PreconditionFailure.class).getViolationsList()
                    .forEach(each -> fieldViolations.put(each.getSubject(), each.getDescription()));
        } else if (detail.is(RetryInfo.class)) {
            com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
            retryDelay = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        }
    }
}
