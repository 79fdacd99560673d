package ditcast

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const domain = "ditcast"

// FieldViolation is a field that was refused: its path from the request in snake case, and why.
type FieldViolation struct {
	Field       string
	Description string
}

// Error is a call or a generation that did not succeed.
type Error struct {
	Code    codes.Code
	Message string
	// Reason in UPPER_SNAKE; empty where the status is not the server's own.
	Reason string
	// FieldViolations has every field that was refused.
	FieldViolations []FieldViolation
	// RetryDelay is after how long to try again; 0: trying again does not help.
	RetryDelay time.Duration
	// Metadata is what the server says beside it, such as steps_done or error_id.
	Metadata map[string]string
}

func (err *Error) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s", err.Code)
	if err.Reason != "" {
		fmt.Fprintf(&text, " (%s)", err.Reason)
	}
	fmt.Fprintf(&text, ": %s", err.Message)
	return text.String()
}

// TransportBroken says that nothing is known of the generation: a proxy whose server died says
// INTERNAL or UNKNOWN, and only the server's own statuses have a reason.
func (err *Error) TransportBroken() bool {
	switch err.Code {
	case codes.Unavailable, codes.Internal, codes.Unknown:
		return err.Reason == ""
	default:
		return false
	}
}

// fromStatus reads a status with its details; what is no status is a broken transport.
func fromStatus(err error) *Error {
	from := status.Convert(err)
	made := &Error{Code: from.Code(), Message: from.Message()}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				made.Reason, made.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.BadRequest:
			for _, each := range detail.FieldViolations {
				made.refuse(each.Field, each.Description)
			}
		case *errdetails.PreconditionFailure:
			for _, each := range detail.Violations {
				made.refuse(each.Subject, each.Description)
			}
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay()
			made.RetryDelay = time.Duration(delay.GetSeconds())*time.Second +
				time.Duration(delay.GetNanos())
		}
	}
	return made
}

func (err *Error) refuse(field, description string) {
	err.FieldViolations = append(err.FieldViolations, FieldViolation{field, description})
}
