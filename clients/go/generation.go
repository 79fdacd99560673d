package ditcast

import (
	"context"
	"io"
	"math/rand"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

// endWait is how long to wait for the end of a call that has said all.
const endWait = time.Second

// routeKey is the header by which a proxy before several servers finds the one with a generation.
const routeKey = "ditcast-route"

// Generation is one generation, for one reader. A generation of one's own that nobody reads any
// more, because ctx ended, is cancelled when its reattach window is over; Cancel does so at once.
type Generation struct {
	ID      string
	client  *Client
	request *pb.GenerateRequest // Nil: somebody else's.
	after   uint64
	stream  func() (*pb.GenerationEvent, error)
	route   atomic.Value       // A string, once a proxy has said one; Cancel may come from anywhere.
	drop    context.CancelFunc // Ends the call behind stream.
	broken  time.Time          // The first break without a new event since; zero: none.
	tries   int
	sent    int32
	done    bool
}

// After is the last event that was seen: what Watch takes to go on after it.
func (generation *Generation) After() uint64 { return generation.after }

// Cancel cancels it, and gives the state that the cancel met.
func (generation *Generation) Cancel(ctx context.Context) (pb.GenerationState, error) {
	return generation.client.Cancel(generation.routed(ctx), generation.ID)
}

// Next gives the next event, each once and in order, and heartbeats; io.EOF after the last. Where
// the connection breaks, the reading goes on after the last event. Any other error is an *Error.
func (generation *Generation) Next(ctx context.Context) (*pb.GenerationEvent, error) {
	if generation.done {
		return nil, io.EOF
	}
	if generation.stream == nil {
		generation.open(ctx)
	}
	for {
		event, err := generation.stream()
		switch {
		case err == nil && generation.isNew(event):
			if event.GetCompleted() != nil {
				generation.seeOff()
			}
			return event, nil
		case err == nil:
		case err == io.EOF:
			generation.seeOff()
			return nil, io.EOF
		default:
			generation.drop()
			lost, failed := generation.comeBack(ctx, fromStatus(err))
			if failed != nil {
				return nil, failed
			}
			if lost != nil {
				return lost, nil
			}
		}
	}
}

func (generation *Generation) open(ctx context.Context) {
	if generation.request == nil {
		generation.watch(ctx)
	} else {
		generation.generate(ctx)
	}
}

// seeOff lets the call end by itself: dropped, it would be a cancelled one to proxies and traces.
// However it ends, and if it does not: everything is there.
func (generation *Generation) seeOff() {
	generation.done = true
	timer := time.AfterFunc(endWait, generation.drop)
	defer timer.Stop()
	defer generation.drop()
	_, _ = generation.stream()
}

func (generation *Generation) generate(ctx context.Context) {
	generation.sent++
	ctx, generation.drop = context.WithCancel(ctx)
	stream, err := generation.client.Service.Generate(generation.routed(ctx), generation.request)
	generation.stream = func() (*pb.GenerationEvent, error) {
		if err != nil {
			return nil, err
		}
		generation.learn(stream)
		answer, err := stream.Recv()
		return answer.GetEvent(), err
	}
}

func (generation *Generation) watch(ctx context.Context) {
	ctx, generation.drop = context.WithCancel(ctx)
	request := &pb.WatchGenerationRequest{RequestId: generation.ID, AfterSequence: generation.after}
	stream, err := generation.client.Service.WatchGeneration(generation.routed(ctx), request)
	generation.stream = func() (*pb.GenerationEvent, error) {
		if err != nil {
			return nil, err
		}
		generation.learn(stream)
		answer, err := stream.Recv()
		return answer.GetEvent(), err
	}
}

// learn keeps the route, if the headers have one; servers send them before the first event.
func (generation *Generation) learn(stream grpc.ClientStream) {
	if headers, err := stream.Header(); err == nil && len(headers.Get(routeKey)) > 0 {
		generation.route.Store(headers.Get(routeKey)[0])
	}
}

// routed has a call carry the route, if there is one.
func (generation *Generation) routed(ctx context.Context) context.Context {
	if route, known := generation.route.Load().(string); known {
		return metadata.AppendToOutgoingContext(ctx, routeKey, route)
	}
	return ctx
}

func (generation *Generation) isNew(event *pb.GenerationEvent) bool {
	generation.broken, generation.tries = time.Time{}, 0
	if event.GetHeartbeat() != nil {
		return true
	}
	if event.Sequence <= generation.after {
		return false
	}
	generation.after = event.Sequence
	return true
}

// comeBack sets up the next stream after an error, or gives the error where that would not help.
// Where the server lost the generation with its process, it gives a restarted event of our own.
func (generation *Generation) comeBack(ctx context.Context, err *Error) (*pb.GenerationEvent, error) {
	comingBack := !generation.broken.IsZero()
	switch {
	case err.TransportBroken():
		if !generation.wait(ctx) {
			return nil, err
		}
	case err.Code == codes.NotFound && comingBack && generation.request != nil:
		seen := generation.after > 0
		generation.after = 0
		generation.generate(ctx)
		if seen {
			return generation.restarted(), nil
		}
		return nil, nil
	case err.Reason != "READER_TIMEOUT":
		return nil, err
	}
	generation.watch(ctx)
	return nil, nil
}

// wait waits longer each time, and spread, so that a server that is back meets no herd. It gives
// false where the patience, or ctx, is over.
func (generation *Generation) wait(ctx context.Context) bool {
	patience, now := generation.client.Patience, time.Now()
	if generation.broken.IsZero() {
		generation.broken = now
	}
	delay := patience.MaxDelay
	if doubled := patience.FirstDelay << generation.tries; generation.tries < 20 && doubled < delay {
		delay = doubled
	}
	delay = time.Duration(float64(delay) * (0.5 + rand.Float64()))
	if now.Add(delay).After(generation.broken.Add(patience.Limit)) {
		return false
	}
	generation.tries++
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}

func (generation *Generation) restarted() *pb.GenerationEvent {
	restarted := &pb.Restarted{
		Attempt: generation.sent,
		Reason:  "the server lost the generation with its process, and was asked again",
	}
	return &pb.GenerationEvent{
		RequestId: generation.ID,
		Time:      timestamppb.Now(),
		Kind:      &pb.GenerationEvent_Restarted{Restarted: restarted},
	}
}
