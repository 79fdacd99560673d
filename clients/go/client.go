// Package ditcast generates with a ditcast server: progress, cancel, coming back to a generation
// whose connection broke, and outputs that are checked.
package ditcast

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

const reattachWindow = 30 * time.Second

// Patience is how long a client comes back to a generation whose connection broke.
type Patience struct {
	Limit      time.Duration // From the first break without a new event; 0: not at all.
	FirstDelay time.Duration
	MaxDelay   time.Duration
}

// Client generates with one server.
type Client struct {
	// Service has the contract's own calls, for what Client does not wrap: Configure and the like.
	Service  pb.DiffusionServiceClient
	Patience Patience
}

// New gives a client over a connection, which stays the caller's to close.
func New(connection grpc.ClientConnInterface) *Client {
	return &Client{
		Service:  pb.NewDiffusionServiceClient(connection),
		Patience: Patience{time.Minute, 100 * time.Millisecond, 5 * time.Second},
	}
}

// Generate gives the generation for a request; nothing is sent before its first event is asked
// for. It goes on for 30 s without a reader unless the request says otherwise, so that a broken
// connection costs nothing.
func (client *Client) Generate(request *pb.GenerateRequest) *Generation {
	asked := proto.Clone(request).(*pb.GenerateRequest)
	if asked.RequestId == "" {
		asked.RequestId = newID()
	}
	continues := asked.OnDisconnect == pb.DisconnectPolicy_DISCONNECT_POLICY_CONTINUE
	if asked.ReattachWindow == nil && !continues {
		asked.ReattachWindow = durationpb.New(reattachWindow)
	}
	return &Generation{ID: asked.RequestId, client: client, request: asked}
}

// Watch gives a generation that runs or has ended, to be watched after an event.
func (client *Client) Watch(id string, after uint64) *Generation {
	return &Generation{ID: id, client: client, after: after}
}

// Cancel cancels a generation and gives the state that the cancel met.
func (client *Client) Cancel(ctx context.Context, id string) (pb.GenerationState, error) {
	answer, err := client.Service.CancelGeneration(ctx, &pb.CancelGenerationRequest{RequestId: id})
	if err != nil {
		return pb.GenerationState_GENERATION_STATE_UNSPECIFIED, fromStatus(err)
	}
	return answer.State, nil
}

func newID() string {
	var bytes [16]byte
	if _, err := rand.Read(bytes[:]); err != nil {
		panic(err) // The system has no randomness: nothing can be done.
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", bytes[:4], bytes[4:6], bytes[6:8], bytes[8:10], bytes[10:])
}
